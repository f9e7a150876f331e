"""Settings: the app, the backend of tasks, and a database from `DATABASE_URL`."""

import os

import django
from psycopg.conninfo import conninfo_to_dict

dsn = conninfo_to_dict(os.environ["DATABASE_URL"])
BACKPORT = ["django_tasks"] if django.VERSION < (6, 0) else []

SECRET_KEY = os.environ.get("SECRET_KEY", "only for this example")
DEBUG = True
USE_TZ = True
ROOT_URLCONF = "project.urls"
STATIC_URL = "static/"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.messages",
    "django.contrib.sessions",
    "django.contrib.staticfiles",
    *BACKPORT,
    "graphile_worker_py.contrib.django",
    "store",
]
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": dsn.get("dbname"),
        "USER": dsn.get("user"),
        "PASSWORD": dsn.get("password"),
        "HOST": dsn.get("host"),
        "PORT": dsn.get("port"),
    }
}
TASKS = {
    "default": {
        "BACKEND": "graphile_worker_py.contrib.django.backend.GraphileWorkerBackend",
        "OPTIONS": {"max_attempts": 5},
    }
}
MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
]
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]
