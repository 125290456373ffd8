"""The npm package `headrace`: its source in `package/`, and the server's answer to `npm install`."""
