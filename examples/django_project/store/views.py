"""Views: order something, and ask for it."""

from django.db import transaction
from django.http import HttpRequest, JsonResponse
from django.views.decorators.csrf import csrf_exempt

from store.models import Order
from store.tasks import ship


@csrf_exempt  # only so that the example works with curl
@transaction.atomic
def order(request: HttpRequest) -> JsonResponse:
    new = Order.objects.create(item=request.POST["item"])
    result = ship.enqueue(new.id)  # the job is added if, and only if, the order is
    if new.item == "nothing":
        raise ValueError("rolls back the order and its job")
    return JsonResponse({"order": new.id, "task": result.id}, status=201)


def shipped(_request: HttpRequest, result_id: str) -> JsonResponse:
    result = ship.get_result(result_id)
    answer = {"status": str(result.status)}
    if result.is_finished:
        answer["result"] = result.return_value
    return JsonResponse(answer)
