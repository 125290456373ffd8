"""The OpenAPI document of this API: written beside the routes, made from the router, served at `/openapi.json`."""
