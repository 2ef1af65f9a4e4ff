// Package assertion signs who is calling for upstreams: short-lived JWTs that
// are bound to one audience, method and path, so that an upstream need not trust
// the network between the gateway and itself. No I/O; its keys come from the
// store.
package assertion
