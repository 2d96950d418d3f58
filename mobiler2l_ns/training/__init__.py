"""Losses, metrics, optimizers, schedules and fine-tuning."""
