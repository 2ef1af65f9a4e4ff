package caddymodule

import "github.com/caddy-auth/caddy-auth/internal/auth"

// showTokens says what of the gateway's own tokens would work again.
func (r *restore) showTokens() error {
	show := func(what, id, was string) error {
		r.s.note("works again: %s %s, which was %s", what, id, was)
		if !r.s.json {
			return nil
		}
		return printJSON(r.s.out, map[string]any{"works_again": id, "what": what, "was": was})
	}
	for _, c := range r.loss.Clients {
		if err := show("client", c.ID, string(c.State())); err != nil {
			return err
		}
	}
	for _, one := range r.loss.Secrets {
		if err := show("a secret of", one.ClientID, "replaced"); err != nil {
			return err
		}
	}
	for _, t := range r.loss.Tokens {
		if err := show("token", t.ID, "revoked"); err != nil {
			return err
		}
	}
	for _, c := range r.loss.Edited {
		if err := show("what was taken from client", c.ID, "edited"); err != nil {
			return err
		}
	}
	for _, k := range r.loss.AssertionKeys {
		if err := show("assertion key", k.ID, "ended or ending"); err != nil {
			return err
		}
	}
	return nil
}

// tokenCommands are what stops that again.
func (r *restore) tokenCommands() {
	for _, c := range r.loss.Clients {
		word := "disable"
		if c.State() == auth.KeyRevoked {
			word = "revoke"
		}
		r.s.note("  caddy-auth client %s %s", word, c.ID)
	}
	for _, one := range r.loss.Secrets {
		r.s.note("  caddy-auth client rotate %s --overlap 0s", one.ClientID)
	}
	for _, c := range r.loss.Edited {
		r.s.note("  caddy-auth client edit %s ...", c.ID)
	}
	if len(r.loss.AssertionKeys) > 0 {
		r.s.note("  caddy-auth assertion-key rotate --overlap 0s")
	}
	if len(r.loss.Tokens) > 0 {
		r.s.note("  (tokens can't be named without their text: disable their clients until the tokens have expired)")
	}
}
