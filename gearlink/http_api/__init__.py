"""The HTTP door: REST below `/api/v1`, the pages that operators and machines ask for, and nothing of the rules.

`routes.ROUTES` declares every call once; the access checks, the OpenAPI document and the docs page are read from it.
`pipeline` is what each request goes through, `auth`, `people` and `conversations` are the handlers (each one domain
call), `system` is everything that is not REST, and `app.build` makes the ASGI app.
"""
