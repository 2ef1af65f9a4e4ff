// Command stock is Caddy as it is released, to compare with, and a handler that
// does nothing but check a signature, for the one case that wants it.
package main

import (
	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	_ "github.com/caddyserver/caddy/v2/modules/standard"
)

func main() { caddycmd.Main() }
