"""Plugins that report to Prometheus, OpenTelemetry and Sentry; each imports its library itself."""
