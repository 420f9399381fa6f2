"""FastAPI's hello world, exactly as the first steps of its tutorial show it."""

from fastapi import FastAPI

app = FastAPI()


@app.get("/")
async def root():  # type: ignore[no-untyped-def]  # a return type would add a response model
    return {"message": "Hello World"}
