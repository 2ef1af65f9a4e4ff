// Command caddy-auth is Caddy with the auth gateway and its commands built in.
package main

import (
	"os"
	"runtime/debug"

	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	_ "github.com/caddyserver/caddy/v2/modules/standard"

	"github.com/caddy-auth/caddy-auth/caddymodule"
)

// gcPercent lets the heap grow to five times what is live before it is
// collected: a proxy makes much garbage and keeps little, so this trades some
// tens of megabytes for a tenth of the CPU. Caddy sets a memory limit from the
// cgroup, which bounds it. The environment's GOGC goes before.
const gcPercent = 400

func main() {
	if _, set := os.LookupEnv("GOGC"); !set {
		debug.SetGCPercent(gcPercent)
	}
	caddymodule.Brand()
	caddycmd.Main()
}
