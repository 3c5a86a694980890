"""Measure the layered vector index beside FAISS, hnswlib and usearch, on one and the same stream.

``data`` makes the stream and its exact answers, ``engines`` puts each library behind the same few calls, ``protocol``
runs the stream on one engine and takes the times, ``mixed`` reads beside a writer, ``runbook`` follows the recall step
by step over collections that drift, ``report`` prints the table and ``plots`` draws. ``bench_vectors.py`` starts one
process for each engine and repeat.
"""
