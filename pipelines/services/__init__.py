"""Real Kafka, PostgreSQL, Redis and RabbitMQ for tests and trials, on loopback and free ports, in a scratch folder.

Each service is a detached process with a pid file, so one command can start it and another stop it:

    from streamfold.pipelines.services import start_redis

    redis = start_redis(folder)
    redis.url         # redis://127.0.0.1:PORT/0
    redis.kill()      # SIGKILL: a crash
    redis.restart()   # the same port and data
    redis.stop()
"""

from streamfold.pipelines.services.kafka import Kafka, start_kafka
from streamfold.pipelines.services.postgres import Postgres, start_postgres
from streamfold.pipelines.services.process import Service, ServiceError, install
from streamfold.pipelines.services.rabbitmq import Rabbitmq, start_rabbitmq
from streamfold.pipelines.services.redis import Redis, start_redis
from streamfold.pipelines.services.secure_kafka import SecureKafka

SERVICES: dict[str, type[Service]] = {"kafka": Kafka, "postgres": Postgres, "rabbitmq": Rabbitmq, "redis": Redis}
"""What one command starts."""

__all__ = [
    "SERVICES",
    "Kafka",
    "Postgres",
    "Rabbitmq",
    "Redis",
    "SecureKafka",
    "Service",
    "ServiceError",
    "install",
    "start_kafka",
    "start_postgres",
    "start_rabbitmq",
    "start_redis",
]
