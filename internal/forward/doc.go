// Package forward decides what identity headers an upstream sees: it removes
// every spelling of them that a client sent, cleans hop-by-hop headers before
// a proxy could use them against us, and injects what the gateway
// established. Plain net/http, no I/O; policies are immutable.
package forward
