"""An application that adds jobs, and the tasks that run them."""

from dataclasses import dataclass

from graphile_worker_py import JobContext, RetryIn, WorkerUtils, task


@dataclass
class Mail:
    """A mail to be sent."""

    to: str
    text: str


@task(max_attempts=5)
async def send_mail(mail: Mail, ctx: JobContext) -> str:
    """Send a mail; from the second attempt on, by way of the other server."""
    if mail.to.endswith("@unreachable.example"):
        raise RetryIn(600, "the server does not answer")
    server = "first" if ctx.job.attempts == 1 else "second"
    return f"{mail.to} by the {server} server"


@task
async def ship(payload: dict[str, str], ctx: JobContext) -> None:
    """Ship an order, and announce it to the customer."""
    await ctx.add_job(send_mail, Mail(payload["customer"], "Your order is on its way"))


async def sign_up(utils: WorkerUtils, address: str) -> None:
    """Welcome a customer now, and ask for an opinion in three days."""
    await utils.add_job(send_mail, Mail(address, "Welcome"), queue_name="mail")
    await utils.add_job(send_mail, Mail(address, "How do you like it?"), run_in=3 * 86400)
