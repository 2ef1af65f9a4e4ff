// Command caddy-auth is Caddy with the auth gateway and its commands built in.
package main

import (
	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	_ "github.com/caddyserver/caddy/v2/modules/standard"

	"github.com/caddy-auth/caddy-auth/caddymodule"
)

func main() {
	tuneCollector()
	caddymodule.Brand()
	caddycmd.Main()
}
