"""Add a job in the transaction of a SQLAlchemy session: user and job are committed together.

    pip install "sqlalchemy[asyncio]"
    DATABASE_URL=postgresql://localhost/playground python examples/sqlalchemy_session.py

The session may use psycopg, as here, or asyncpg (`postgresql+asyncpg://…`).
"""

import asyncio
import os

from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from graphile_worker_py import WorkerUtils, run_once, task

DSN = os.environ["DATABASE_URL"]


class Base(DeclarativeBase):
    """Base of the models."""


class User(Base):
    """Somebody who has signed up."""

    __tablename__ = "users"

    id: Mapped[int] = mapped_column(primary_key=True)
    email: Mapped[str] = mapped_column(unique=True)


@task
async def welcome(payload: dict[str, str]) -> None:
    print("Welcome", payload["to"])


async def sign_up(session: AsyncSession, utils: WorkerUtils, email: str) -> None:
    session.add(User(email=email))
    await utils.add_job(welcome, {"to": email}, conn=session)


async def main() -> None:
    engine = create_async_engine(DSN.replace("postgresql://", "postgresql+psycopg://", 1))
    sessions = async_sessionmaker(engine)
    async with engine.begin() as conn:
        await conn.run_sync(Base.metadata.create_all)
    async with WorkerUtils(DSN) as utils:
        async with sessions() as session:
            await sign_up(session, utils, "ada@example.com")
            await session.commit()
        async with sessions() as session:
            await sign_up(session, utils, "grace@example.com")
            await session.rollback()  # neither the user nor the job
        print("waiting jobs:", (await utils.counts()).total)
    await run_once(DSN, tasks=[welcome])
    await engine.dispose()


asyncio.run(main())
