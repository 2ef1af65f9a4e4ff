// Package caddymodule adapts the gateway to Caddy: the app "auth", the
// handlers "auth" and "auth_require", stores as guest modules, the Caddyfile
// and the commands. No decisions are taken here; see internal/verifier and
// internal/forward for those.
package caddymodule
