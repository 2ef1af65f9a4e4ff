package e2e

import "github.com/caddyserver/caddy/v2"

// stopCaddy stops the running gateway before its test ends.
func stopCaddy() error { return caddy.Stop() }
