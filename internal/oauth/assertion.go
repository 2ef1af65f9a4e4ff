package oauth

import (
	"context"
	"crypto/sha256"
	"slices"
	"sync"
	"time"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/jwt"
	"github.com/caddy-auth/caddy-auth/internal/strictjson"
)

const (
	assertionType = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
	// mostAssertionLife is how far in the future an assertion may expire, and so
	// how long its jti is remembered.
	mostAssertionLife = 5 * time.Minute
	leeway            = 30 * time.Second
	maxJTI            = 256
)

// assertionTypes are what typ may be: a token for another purpose is no client
// assertion (RFC 8725, 3.11).
var assertionTypes = []string{"", "JWT", "client-authentication+jwt"}

// readAssertion finds out whose an assertion is said to be.
func readAssertion(f form) (presented, *Failure) {
	text := f.get("client_assertion")
	switch {
	case f.get("client_assertion_type") != assertionType:
		return presented{}, bad(invalidRequest, "client_assertion_type must be "+assertionType)
	case text == "":
		return presented{}, bad(invalidRequest, "client_assertion is missing")
	case len(text) > maxAssertion:
		return presented{}, noClient("a client assertion that is too long")
	}
	t, reason := jwt.Parse(text)
	if reason != auth.ReasonNone {
		return presented{}, noClient(reason.String())
	}
	sub, ok := t.Claims.Text("sub")
	if claimed := f.get("client_id"); !ok || sub == "" || len(sub) > maxClientID || !plainText(sub) || claimed != "" && claimed != sub {
		return presented{}, noClient(auth.ReasonClaims.String())
	}
	return presented{way: PrivateKeyJWT, id: sub, token: t}, nil
}

// checkAssertion verifies a client assertion (RFC 7523, 3). For a client that is
// not there, or has no keys, a signature is checked all the same: it takes as
// long.
func (s *Server) checkAssertion(ctx context.Context, p presented, c Caller, t throttle) (proof, *Failure) {
	if s.cfg.Issuer == "" {
		return proof{}, noClient("a client assertion, but no issuer is configured that it could be for")
	}
	token := p.token
	issue, failure := s.readClaims(token, p.id, c)
	if failure != nil {
		return proof{}, failure
	}
	leave, failure := t.enter(ctx, s.now())
	if failure != nil {
		return proof{}, failure
	}
	defer leave()
	v := s.credentials.FindClient(ctx, p.id, s.now())
	if v.Outcome == auth.CannotDecide {
		return proof{}, unavailable(v.Cause)
	}
	keys := keysOf(v)
	signed, tried := s.verifySignature(token, keys)
	if !tried {
		s.verifySignature(token, decoys())
	}
	switch {
	case v.Outcome != auth.Allow:
		return proof{}, noClient(v.Reason.String())
	case len(keys) == 0:
		return proof{}, noClient("a client without keys")
	case !tried:
		return proof{}, noClient(auth.ReasonKeyID.String())
	case !signed:
		return proof{}, noClient(auth.ReasonSignature.String())
	}
	return proof{client: &v.Identity, assertion: issue}, nil
}

// readClaims judges all but the signature (RFC 7523, 3).
func (s *Server) readClaims(t *jwt.Token, sub string, c Caller) (*Issue, *Failure) {
	now := s.now()
	iss, ok1 := t.Claims.Text("iss")
	jti, ok2 := t.Claims.Text("jti")
	audiences, ok3 := t.Claims.Words("aud")
	exp, hasExp, ok4 := t.Claims.Date("exp")
	nbf, _, ok5 := t.Claims.Date("nbf")
	iat, _, ok6 := t.Claims.Date("iat")
	at, slack := now.UnixMilli(), leeway.Milliseconds()
	switch {
	case !slices.ContainsFunc(assertionTypes, func(typ string) bool { return typ == "" && t.Type == "" || typ != "" && t.IsType(typ) }):
		return nil, noClient(auth.ReasonTokenType.String())
	case !ok1 || !ok2 || !ok3 || !ok4 || !ok5 || !ok6, iss != sub:
		return nil, noClient(auth.ReasonClaims.String())
	case jti == "" || len(jti) > maxJTI: // without one it could be sent again
		return nil, noClient("a client assertion without a jti")
	case len(audiences) == 0 || slices.ContainsFunc(audiences, func(a string) bool { return a == "" || a != s.cfg.Issuer && !slices.Contains(c.Endpoints, a) }):
		return nil, noClient(auth.ReasonAudience.String()) // nor one that others could send here
	case !hasExp || exp > at+mostAssertionLife.Milliseconds()+slack:
		return nil, noClient(auth.ReasonLifetime.String())
	case at >= exp+slack:
		return nil, noClient(auth.ReasonExpired.String())
	case nbf > at+slack || iat > at+slack:
		return nil, noClient(auth.ReasonNotYet.String())
	}
	sum := sha256.Sum256([]byte(jti))
	issue := &Issue{JTI: sum[:], AssertionEnds: exp + slack}
	issue.Token.ClientID = sub
	return issue, nil
}

func keysOf(v auth.Verdict) []*jwt.Key {
	if v.Outcome != auth.Allow {
		return nil
	}
	return parseKeys(auth.ClientJWKS(&v.Identity))
}

func parseKeys(text string) []*jwt.Key {
	set, err := strictjson.Decode([]byte(text))
	if err != nil {
		return nil
	}
	list, _ := set["keys"].([]any)
	var keys []*jwt.Key
	for _, one := range list {
		if o, ok := one.(strictjson.Object); ok {
			if k, err := jwt.ParseKey(o); err == nil {
				keys = append(keys, k)
			}
		}
	}
	return keys
}

// verifySignature checks a token with the one key that its kid names, or, if it
// has none, with the only key that its algorithm goes with. tried says that
// there was one: whoever the client is, one signature is checked.
func (s *Server) verifySignature(t *jwt.Token, keys []*jwt.Key) (signed, tried bool) {
	var key *jwt.Key
	for _, k := range keys {
		if !k.Fits(jwt.Canonical(t.Algorithm)) || t.KeyID != "" && k.ID != "" && t.KeyID != k.ID {
			continue
		}
		if key != nil && t.KeyID == "" { // which of them?
			return false, false
		}
		if key == nil || k.ID == t.KeyID {
			key = k
		}
	}
	if key == nil {
		return false, false
	}
	r := t.Verify(key, jwt.DefaultAlgorithms())
	if r == auth.ReasonAlgorithm {
		return false, false
	}
	s.checked()
	return r == auth.ReasonNone, true
}

// decoys are public keys whose private parts nobody has.
var decoys = sync.OnceValue(func() []*jwt.Key { return parseKeys(decoySet) })
