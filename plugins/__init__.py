"""Built-in policies and backends: ordinary plugins, one per file, that see only ``streamfold.core``'s public names."""
