// Package grant asks token endpoints (RFC 6749, 3.2) as a client: for tokens, and
// for their end (RFC 7009). What they answer is judged as what it is: the words
// of somebody else. Neither a token nor a secret is ever in an error.
package grant
