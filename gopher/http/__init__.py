"""HTTP/1 as bytes: where messages begin and end. Sans-I/O; see `gopher.http.framing`."""
