package manage

import (
	"context"
	"errors"
	"net/url"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/store"
)

const (
	maxTokenName = 512
	// ahead is how far the time of a cut-off may lie in the future: an issuer's
	// clock may be ahead of the store's.
	ahead = 5 * time.Minute
)

// CutOff ends tokens of another issuer: the one with c.JTI, or those of
// c.Subject that were issued before c.IssuedBefore, which is now if it is 0. A
// name is what the token says, or what upstreams see: percent-encoded, and a
// subject with the issuer's name in front. forEver keeps it for ever, for tokens
// that may live that long. It reports whether anything changed.
func (m *Manager) CutOff(ctx context.Context, c auth.CutOff, forEver bool) (changed bool, err error) {
	if err := checkCutOff(&c); err != nil {
		return false, err
	}
	err = m.change(ctx, func(tx *store.Tx) error {
		for _, one := range readings(c) {
			if !forEver {
				one.KeptUntil = max(tx.Now(), one.IssuedBefore) + auth.CutOffsKept.Milliseconds()
			}
			switch {
			case one.JTI != "":
				one.IssuedBefore = auth.AnyTime
			case one.IssuedBefore == 0:
				one.IssuedBefore = tx.Now()
			case one.IssuedBefore > tx.Now()+ahead.Milliseconds():
				return auth.WithHint(auth.Invalidf("a time in the future: tokens that are not issued yet can't be cut off"), "leave the time out for: all until now")
			}
			did, err := tx.CutOff(ctx, one)
			if err != nil {
				return err
			}
			if !did {
				continue
			}
			changed = true
			if err := errors.Join(tx.Journal(ctx, store.ChangeTokenRevoke, nil, one.Parent()), tx.Audit(ctx, "token.revoke", "issuer:"+one.Issuer, cutOffDetail(one))); err != nil {
				return err
			}
		}
		return nil
	})
	return changed && err == nil, err
}

// readings are all that a name may mean, since which was meant can't be told: as
// it is, without the issuer's name in front, and each as it was before it was
// percent-encoded for a header.
func readings(c auth.CutOff) []auth.CutOff {
	var names []string
	add := func(name string) {
		if name != "" && !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	both := func(name string) {
		add(name)
		if plain, err := url.PathUnescape(name); err == nil && checkName(plain) {
			add(plain)
		}
	}
	if c.JTI != "" {
		both(c.JTI)
	} else {
		both(c.Subject)
		if bare, ok := strings.CutPrefix(c.Subject, auth.PartOf(c.Issuer, "")); ok {
			both(bare)
		}
	}
	var out []auth.CutOff
	for _, name := range names {
		one := c
		if c.JTI != "" {
			one.JTI = name
		} else {
			one.Subject = name
		}
		out = append(out, one)
	}
	return out
}

func cutOffDetail(c auth.CutOff) map[string]any {
	if c.JTI != "" {
		return map[string]any{"jti": c.JTI, "reason": c.Reason}
	}
	return map[string]any{"subject": c.Subject, "issued_before": c.IssuedBefore, "reason": c.Reason}
}

// checkName reports whether every store can hold a name.
func checkName(s string) bool { return utf8.ValidString(s) && !strings.Contains(s, "\x00") }

func checkCutOff(c *auth.CutOff) error {
	what, name := "subject", c.Subject
	if c.JTI != "" {
		what, name = "jti", c.JTI
	}
	switch {
	case (c.JTI == "") == (c.Subject == ""):
		return auth.Invalidf("want a jti or a subject")
	case !checkName(name):
		return auth.Invalidf("the %s is not UTF-8, or has a NUL: no token with it is taken", what)
	case len(name) > maxTokenName:
		return auth.Invalidf("the %s is longer than %d bytes: no token with it is taken", what, maxTokenName)
	case c.IssuedBefore < 0:
		return auth.Invalidf("a time before 1970")
	case strings.Count(name, ".") == 2 && strings.HasPrefix(name, "ey"):
		return auth.WithHint(auth.Invalidf("the %s looks like a whole token", what), "a token is never an argument: others can read command lines; want its jti, as in X-Auth-Credential-Id and the decision log")
	case keyShape.MatchString(name):
		return errKeyInText("the " + what)
	}
	return checkText("reason", c.Reason, 256)
}
