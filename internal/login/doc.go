// Package login signs people in as a relying party: the authorization code flow
// with PKCE (RFC 6749, 4.1; RFC 7636; OpenID Connect Core, 3.1), the tokens that
// a provider gave for a session, and their end. What comes from a browser or a
// provider is the word of somebody else until it has been checked. Neither a
// token nor a code is ever in an error.
package login
