"""What `WorkerUtils` and `SyncWorkerUtils` read."""
