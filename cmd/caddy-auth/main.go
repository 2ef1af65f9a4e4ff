package main

import (
	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	_ "github.com/caddyserver/caddy/v2/modules/standard"
	_ "modernc.org/sqlite"
	_ "golang.org/x/term"
)

func main() { caddycmd.Main() }
