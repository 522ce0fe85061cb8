"""The bundled workflows, described once; written as the graph editor's JSON and as the HTTP API's."""
