"""Real-time recommendations from engagement events on Kafka."""
