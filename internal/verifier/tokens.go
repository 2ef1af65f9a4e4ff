package verifier

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/cache"
	"github.com/caddy-auth/caddy-auth/internal/jwt"
	"github.com/caddy-auth/caddy-auth/internal/secret"
)

// Tokens are the bearer tokens of others that a site takes. It is immutable;
// nil takes none.
type Tokens struct {
	issuers      []*Issuer
	introspector *Introspector // nil: none
}

// NewTokens returns what takes the tokens of issuers, and what no issuer's is
// to an introspector, if it isn't nil. Two issuers whose tokens can't be told
// apart are auth.ErrInvalid.
func NewTokens(issuers []*Issuer, introspector *Introspector) (*Tokens, error) {
	for i, one := range issuers {
		for _, other := range issuers[:i] {
			for _, iss := range one.names {
				if slices.Contains(other.names, iss) {
					return nil, auth.WithHint(auth.Invalidf("issuers %s and %s would both take tokens whose iss is %s", other.Name(), one.Name(), iss), "give both their url")
				}
			}
		}
	}
	return &Tokens{issuers, introspector}, nil
}

// issuer returns whose tokens have that iss (RFC 8725, 3.8), or nil.
func (t *Tokens) issuer(iss string) *Issuer {
	if iss == "" {
		return nil
	}
	for _, i := range t.issuers {
		if slices.Contains(i.names, iss) {
			return i
		}
	}
	return nil
}

// knows reports whether a verdict was given by a configuration that is still
// this one.
func (t *Tokens) knows(s auth.Source) bool {
	for _, i := range t.issuers {
		if i.source == s {
			return true
		}
	}
	return false
}

// Asks reports whether tokens of the set are asked about.
func (t *Tokens) Asks() bool { return t != nil && t.introspector != nil }

// sourceOf is the digest of a configuration.
func sourceOf(kind string, configuration any) auth.Source {
	text, err := json.Marshal(configuration)
	if err != nil { // only strings, numbers and lists are configured
		panic(err)
	}
	sum := sha256.Sum256(append([]byte(kind+"\x00"), text...))
	return auth.Source(sum[:16])
}

// under is the fingerprint that memory and streams know a token by, so that no
// kind of credential, and no introspector, ever meets another's.
func under(fp auth.Fingerprint, salt auth.Source) auth.Fingerprint {
	for i, b := range salt {
		fp[i] ^= b
	}
	return fp
}

var jwtSalt = sourceOf("jwt", nil)

// VerifyBearer verifies what came as a bearer token: a key of ours, or a token
// that tokens take. What it is follows from its form and the configuration,
// without I/O. from is whose share of the questions to an introspector it is;
// invalid: nobody's. It also returns the fingerprint that its verdict is kept under.
func (v *Verifier) VerifyBearer(ctx context.Context, fp auth.Fingerprint, text string, tokens *Tokens, from netip.Addr, now time.Time) (auth.Verdict, auth.Fingerprint) {
	if imported := v.imported.Load(); tokens == nil || imported.Len() > 0 && imported.Has(fp) {
		return v.Verify(ctx, fp, text, now), fp
	}
	// No key of ours has dots.
	if len(tokens.issuers) > 0 && text[0] == 'e' && strings.Count(text, ".") == 2 {
		return v.verifyJWT(ctx, fp, text, tokens, from, now)
	}
	return v.verifyOpaque(ctx, fp, text, tokens, from, now)
}

// mayBeKey reports whether text begins as our keys do, or as imported ones whose
// form tells them apart, or has a key of ours inside: a key that was mistyped is
// nobody else's to see.
func (v *Verifier) mayBeKey(text string) bool {
	m := v.minter.Load()
	if m == nil { // nobody knows
		return true
	}
	if v.imported.Load().Claims(text) {
		return true
	}
	head, rest, _ := strings.Cut(text, "_")
	if slices.Contains(m.Prefixes(), head) {
		if env, _, ok := strings.Cut(rest, "_"); ok && secret.ValidName(env) {
			return true
		}
	}
	return slices.ContainsFunc(m.Prefixes(), func(p string) bool { return holdsKey(m, text, p+"_") })
}

// holdsKey reports whether a key of ours, its tag included, stands somewhere in
// text. What only looks like one is in random texts too.
func holdsKey(m *secret.Minter, text, begin string) bool {
	for {
		i := strings.Index(text, begin)
		if i < 0 {
			return false
		}
		env, rest, ok := strings.Cut(text[i+len(begin):], "_")
		if ok && secret.ValidName(env) && len(rest) >= auth.KeyTailLen && m.Check(begin+env+"_"+rest[:auth.KeyTailLen]) == auth.ReasonNone {
			return true
		}
		text = text[i+1:]
	}
}

// verifyOpaque asks the introspector, if there is one.
func (v *Verifier) verifyOpaque(ctx context.Context, fp auth.Fingerprint, text string, tokens *Tokens, from netip.Addr, now time.Time) (auth.Verdict, auth.Fingerprint) {
	if tokens.introspector == nil || v.mayBeKey(text) {
		return v.Verify(ctx, fp, text, now), fp
	}
	own := under(fp, tokens.introspector.source)
	return v.introspect(ctx, own, text, from, tokens.introspector, now), own
}

// verifyJWT verifies a token of an issuer that is configured. One of anybody
// else is the introspector's, if there is one.
func (v *Verifier) verifyJWT(ctx context.Context, fp auth.Fingerprint, text string, tokens *Tokens, from netip.Addr, now time.Time) (verdict auth.Verdict, own auth.Fingerprint) {
	own = under(fp, jwtSalt)
	trusted := v.fence.Trusted(now)
	if trusted && v.memory.Lookup(&verdict, own, now) && tokens.knows(verdict.Source) {
		v.meter.Lookup(TierMemory, hitOf(&verdict))
		judgeExpiry(&verdict, now)
		return verdict, own
	}
	if !jwt.Looks(text) {
		return v.verifyOpaque(ctx, fp, text, tokens, from, now)
	}
	token, reason := jwt.Parse(text)
	var iss string
	if token != nil {
		iss, _ = token.Claims.Text("iss")
	} else {
		iss = jwt.Peek(text)
	}
	issuer := tokens.issuer(iss)
	switch {
	case issuer == nil && tokens.introspector != nil:
		return v.verifyOpaque(ctx, fp, text, tokens, from, now)
	case reason != auth.ReasonNone:
		return auth.Denied(reason), own
	case issuer == nil:
		return auth.Denied(auth.ReasonIssuer), own
	case !trusted: // it may not join a flight; what is bad is bad all the same
		if verdict = issuer.judge(ctx, token, now, v.cutOffs.Load()); verdict.Outcome == auth.Allow {
			verdict = auth.Undecided(auth.ErrStale)
		}
		return verdict, own
	}
	return v.loadJWT(ctx, own, token, issuer, now), own
}

// loadJWT checks a token, once for all requests that come with it meanwhile.
func (v *Verifier) loadJWT(ctx context.Context, own auth.Fingerprint, token *jwt.Token, issuer *Issuer, now time.Time) (verdict auth.Verdict) {
	for range maxRuns {
		verdict = auth.Verdict{}
		hit, flight, lead := v.memory.Join(&verdict, own, now)
		switch {
		case hit && verdict.Source != issuer.source: // of another configuration
			v.memory.Drop(own)
			continue
		case hit:
			v.meter.Lookup(TierMemory, hitOf(&verdict))
			judgeExpiry(&verdict, now)
			return verdict
		case lead:
			v.meter.Lookup(TierMemory, Miss)
			v.checkJWT(flight, own, token, issuer)
		}
		verdict = v.wait(ctx, flight, now)
		if verdict.Outcome == auth.CannotDecide || verdict.Source == issuer.source {
			return verdict
		}
	}
	// Two configurations have the issuer, while one replaces the other, and each
	// puts its own verdict in the other's place.
	return issuer.judge(ctx, token, now, v.cutOffs.Load())
}

// checkJWT ends a flight with the verdict on a token. Denials are not kept: they
// cost no I/O, and the next second may be another.
func (v *Verifier) checkJWT(f *cache.Flight, own auth.Fingerprint, token *jwt.Token, issuer *Issuer) {
	verdict, landed := auth.Undecided(auth.ErrFenced), false
	defer func() {
		if !landed {
			v.memory.Abort(f, verdict)
		}
	}()
	ctx, cancel := context.WithTimeout(context.Background(), loadTimeout) // others wait for it too
	defer cancel()
	for run := range maxRuns {
		point, ok := v.fence.Point() // before the cut-offs are looked at
		if !ok {
			verdict = auth.Undecided(auth.ErrStale)
			return
		}
		checked := v.hooks.Now()
		judged := issuer.judge(ctx, token, checked, v.cutOffs.Load())
		if v.hooks.AfterLoad != nil {
			v.hooks.AfterLoad(run)
		}
		if judged.Outcome != auth.Allow {
			verdict = judged
			v.meter.Lookup(TierSignature, resultOf(&judged))
			return
		}
		parents := auth.ParentsOf(&judged.Identity)
		if landed = v.land(f, judged, checked, point, own, parents); landed {
			v.meter.Lookup(TierSignature, Hit)
			return
		}
		v.meter.Lookup(TierSignature, Fenced)
	}
}

// errCutOffs is why no token can be judged.
var errCutOffs = fmt.Errorf("what was cut off was not read yet: %w", auth.ErrUnavailable)
