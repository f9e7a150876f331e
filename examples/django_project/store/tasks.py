"""Tasks: one of Django's, one of graphile_worker_py."""

from importlib.util import find_spec
from typing import Any

from graphile_worker_py import task as graphile_task
from store.models import Order

if find_spec("django.tasks"):
    from django.tasks import task
else:
    from django_tasks import task


@task
def ship(order_id: int) -> str:
    order = Order.objects.get(id=order_id)
    order.shipped = True
    order.save()
    return f"{order.item} is on its way"


@graphile_task
def count_orders(_payload: Any) -> None:
    print(Order.objects.filter(shipped=True).count(), "orders were shipped", flush=True)
