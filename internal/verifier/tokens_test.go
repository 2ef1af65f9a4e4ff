package verifier_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unicode/utf8"

	jose "github.com/go-jose/go-jose/v4"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/jwt"
	"github.com/caddy-auth/caddy-auth/internal/secret"
	"github.com/caddy-auth/caddy-auth/internal/strictjson"
	"github.com/caddy-auth/caddy-auth/internal/verifier"
)

// keySet is an issuer's one key, and counts how often it is asked for, which is
// once for each signature that is checked.
type keySet struct {
	signer *ecdsa.PrivateKey
	key    *jwt.Key
	asked  atomic.Int64
	err    error
	hold   func()
}

func newKeySet(t testing.TB) *keySet {
	t.Helper()
	s := &keySet{}
	var err error
	if s.signer, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(jose.JSONWebKey{Key: s.signer.Public(), KeyID: "k"})
	if err != nil {
		t.Fatal(err)
	}
	o, err := strictjson.Decode(text)
	if err != nil {
		t.Fatal(err)
	}
	if s.key, err = jwt.ParseKey(o); err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *keySet) Key(context.Context, string, string, time.Time) (*jwt.Key, error) {
	s.asked.Add(1)
	if s.hold != nil {
		s.hold()
	}
	return s.key, s.err
}

func (s *keySet) token(t testing.TB, sub, jti string) string {
	t.Helper()
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: s.signer}, (&jose.SignerOptions{}).WithHeader("kid", "k"))
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now().Unix()
	signed, err := signer.Sign(fmt.Appendf(nil, `{"iss":"https://idp.example","aud":"api","sub":%q,"jti":%q,"iat":%d,"exp":%d,"scope":"a b"}`, sub, jti, now-5, now+600))
	if err != nil {
		t.Fatal(err)
	}
	text, err := signed.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func (s *keySet) tokens(t testing.TB, change func(*verifier.IssuerRules), introspector *verifier.Introspector) *verifier.Tokens {
	t.Helper()
	rules := verifier.IssuerRules{Name: "corp", URL: "https://idp.example", Audiences: []string{"api"}}
	if change != nil {
		change(&rules)
	}
	issuer, err := verifier.NewIssuer(rules, s)
	if err != nil {
		t.Fatal(err)
	}
	tokens, err := verifier.NewTokens([]*verifier.Issuer{issuer}, introspector)
	if err != nil {
		t.Fatal(err)
	}
	return tokens
}

func (n *node) bearer(text string, tokens *verifier.Tokens) auth.Verdict {
	v, _ := n.verifier.VerifyBearer(n.t.Context(), auth.FingerprintOf(text), text, tokens, netip.Addr{}, time.Now())
	return v
}

func (n *node) cut(c auth.CutOff) {
	n.t.Helper()
	_, err := n.manage.CutOff(n.t.Context(), c, false)
	n.must(err)
}

func wantVerdict(t testing.TB, what string, v auth.Verdict, o auth.Outcome, r auth.Reason) {
	t.Helper()
	if v.Outcome != o || v.Reason != r {
		t.Errorf("%s: outcome %d reason %s (%v), want %d %s", what, v.Outcome, v.Reason, v.Cause, o, r)
	}
}

// TestJWT_OneCheck: however many requests come with a token, its signature is
// checked once, and a cached one costs what a cached key costs.
func TestJWT_OneCheck(t *testing.T) {
	n, keys := newNode(t), newKeySet(t)
	tokens, text := keys.tokens(t, nil, nil), keys.token(t, "alice", "1")
	var all sync.WaitGroup
	for range 300 {
		all.Go(func() {
			if v := n.bearer(text, tokens); v.Outcome != auth.Allow {
				t.Errorf("%+v", v)
			}
		})
	}
	all.Wait()
	if got := keys.asked.Load(); got != 1 {
		t.Errorf("%d signature checks for one token", got)
	}
	ctx, now := t.Context(), time.Now()
	if got := testing.AllocsPerRun(1000, func() { n.verifier.VerifyBearer(ctx, auth.FingerprintOf(text), text, tokens, netip.Addr{}, now) }); got > 1 {
		t.Errorf("%.1f allocations for a cached token", got)
	}
	if n.loads.Load() != 0 {
		t.Error("the store was asked about a token")
	}
}

// TestJWT_AnotherConfiguration: a verdict counts only for who would give it too.
func TestJWT_AnotherConfiguration(t *testing.T) {
	n, keys := newNode(t), newKeySet(t)
	text := keys.token(t, "alice", "1")
	first := keys.tokens(t, nil, nil)
	wantVerdict(t, "first", n.bearer(text, first), auth.Allow, auth.ReasonNone)
	for name, tc := range map[string]struct {
		change func(*verifier.IssuerRules)
		want   auth.Reason
	}{
		"audience":  {func(r *verifier.IssuerRules) { r.Audiences = []string{"others"} }, auth.ReasonAudience},
		"algorithm": {func(r *verifier.IssuerRules) { r.Algorithms = []string{"RS256"} }, auth.ReasonAlgorithm},
		"type":      {func(r *verifier.IssuerRules) { r.TokenType = "at+jwt" }, auth.ReasonTokenType},
		"claim":     {func(r *verifier.IssuerRules) { r.Identity.Required = []verifier.Claim{{Name: "tenant"}} }, auth.ReasonClaims},
		"lifetime":  {func(r *verifier.IssuerRules) { r.MaxTokenLifetime = time.Minute }, auth.ReasonLifetime},
		"issuer":    {func(r *verifier.IssuerRules) { r.URL = "https://another.example" }, auth.ReasonIssuer},
	} {
		wantVerdict(t, name, n.bearer(text, keys.tokens(t, tc.change, nil)), auth.Deny, tc.want)
		wantVerdict(t, "as before, after "+name, n.bearer(text, first), auth.Allow, auth.ReasonNone)
	}
	other := keys.tokens(t, func(r *verifier.IssuerRules) { r.Identity.Environment = "test" }, nil)
	if v := n.bearer(text, other); v.Identity.Environment != "test" {
		t.Errorf("a verdict crossed: %+v", v.Identity)
	}
	wantVerdict(t, "no issuers at all", n.bearer(text, nil), auth.Deny, auth.ReasonMalformed)
}

// TestJWT_CutOff: what is cut off is refused however the change and the check
// meet, and only that.
func TestJWT_CutOff(t *testing.T) {
	n, keys := newNode(t), newKeySet(t)
	tokens := keys.tokens(t, nil, nil)
	a, b, c := keys.token(t, "alice", "1"), keys.token(t, "alice", "2"), keys.token(t, "bob", "1x")
	for _, text := range []string{a, b, c} {
		wantVerdict(t, "before", n.bearer(text, tokens), auth.Allow, auth.ReasonNone)
	}
	asked := keys.asked.Load()
	n.cut(auth.CutOff{Issuer: "corp", JTI: "1"})
	n.look()
	wantVerdict(t, "by jti", n.bearer(a, tokens), auth.Deny, auth.ReasonRevoked)
	wantVerdict(t, "another of hers", n.bearer(b, tokens), auth.Allow, auth.ReasonNone)
	wantVerdict(t, "of another", n.bearer(c, tokens), auth.Allow, auth.ReasonNone)
	if got := keys.asked.Load() - asked; got != 1 {
		t.Errorf("%d tokens were checked again, want the one", got)
	}
	n.cut(auth.CutOff{Issuer: "corp", Subject: "alice", IssuedBefore: time.Now().Add(-time.Hour).UnixMilli()})
	n.look()
	wantVerdict(t, "issued since", n.bearer(b, tokens), auth.Allow, auth.ReasonNone)
	n.cut(auth.CutOff{Issuer: "corp", Subject: "alice"})
	n.look()
	wantVerdict(t, "by subject", n.bearer(b, tokens), auth.Deny, auth.ReasonRevoked)
	n.cut(auth.CutOff{Issuer: "corp", Subject: "alice", IssuedBefore: 1})
	n.look()
	wantVerdict(t, "an earlier time takes nothing back", n.bearer(b, tokens), auth.Deny, auth.ReasonRevoked)
	wantVerdict(t, "bob", n.bearer(c, tokens), auth.Allow, auth.ReasonNone)

	// In the middle of a check: the cut-off comes after it was looked for.
	late := keys.token(t, "bob", "late")
	n.setHooks(verifier.Hooks{AfterLoad: func(int) {
		n.setHooks(verifier.Hooks{})
		n.cut(auth.CutOff{Issuer: "corp", JTI: "late"})
		n.look()
	}})
	wantVerdict(t, "in the middle", n.bearer(late, tokens), auth.Deny, auth.ReasonRevoked)

	// While it is not known what was cut off, nobody is judged.
	known := n.verifier.CutOffs()
	n.verifier.SetCutOffs(nil)
	wantVerdict(t, "unknown", n.bearer(keys.token(t, "bob", "new"), tokens), auth.CannotDecide, auth.ReasonNone)
	n.verifier.SetCutOffs(known)
	wantVerdict(t, "known again", n.bearer(keys.token(t, "bob", "new"), tokens), auth.Allow, auth.ReasonNone)
}

// TestJWT_Undecided: who can't ask says so, and never that a token is bad.
func TestJWT_Undecided(t *testing.T) {
	n, keys := newNode(t), newKeySet(t)
	tokens := keys.tokens(t, nil, nil)
	keys.err = auth.ErrUnavailable
	wantVerdict(t, "no keys", n.bearer(keys.token(t, "alice", "1"), tokens), auth.CannotDecide, auth.ReasonNone)
	keys.err = auth.ErrNotFound
	wantVerdict(t, "no such key", n.bearer(keys.token(t, "alice", "1"), tokens), auth.Deny, auth.ReasonKeyID)
	keys.err = nil
	text := keys.token(t, "alice", "1")
	wantVerdict(t, "well", n.bearer(text, tokens), auth.Allow, auth.ReasonNone)
	late := time.Now().Add(2 * time.Minute) // no look since
	v, _ := n.verifier.VerifyBearer(t.Context(), auth.FingerprintOf(text), text, tokens, netip.Addr{}, late)
	wantVerdict(t, "stale", v, auth.CannotDecide, auth.ReasonNone)
	bad := text[:len(text)-8] + "AAAAAAAA"
	v, _ = n.verifier.VerifyBearer(t.Context(), auth.FingerprintOf(bad), bad, tokens, netip.Addr{}, late)
	wantVerdict(t, "bad, and stale", v, auth.Deny, auth.ReasonSignature)
}

// server answers introspection.
type server struct {
	mu     sync.Mutex
	answer string
	err    error
	asked  int
	hold   chan struct{}
}

func (s *server) Introspect(context.Context, string, netip.Addr) (strictjson.Object, error) {
	s.mu.Lock()
	s.asked++
	answer, err, hold := s.answer, s.err, s.hold
	s.mu.Unlock()
	if hold != nil {
		<-hold
	}
	if err != nil {
		return nil, err
	}
	return strictjson.Decode([]byte(answer))
}

func (s *server) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.asked
}

func (s *server) opaque(t testing.TB, change func(*verifier.IntrospectionRules)) *verifier.Tokens {
	t.Helper()
	rules := verifier.IntrospectionRules{Name: "legacy", URL: "https://idp.example/introspect", ClientID: "gw"}
	if change != nil {
		change(&rules)
	}
	in, err := verifier.NewIntrospector(rules, s)
	if err != nil {
		t.Fatal(err)
	}
	tokens, err := verifier.NewTokens(nil, in)
	if err != nil {
		t.Fatal(err)
	}
	return tokens
}

func answerFor(sub string, more string) string {
	now := time.Now().Unix()
	return fmt.Sprintf(`{"active":true,"sub":%q,"aud":"api","jti":"o","iat":%d,"exp":%d%s}`, sub, now-5, now+600, more)
}

func TestIntrospection_Coalesced(t *testing.T) {
	n := newNode(t)
	s := &server{answer: answerFor("bob", ""), hold: make(chan struct{})}
	tokens := s.opaque(t, nil)
	var all sync.WaitGroup
	for range 500 {
		all.Go(func() {
			if v := n.bearer("opaque", tokens); v.Outcome != auth.Allow || v.Identity.Subject != "legacy:bob" {
				t.Errorf("%+v", v)
			}
		})
	}
	close(s.hold)
	all.Wait()
	if got := s.count(); got != 1 {
		t.Errorf("asked %d times", got)
	}
	s.mu.Lock()
	s.answer = `{"active":false}`
	s.mu.Unlock()
	for range 5 {
		wantVerdict(t, "inactive", n.bearer("another", tokens), auth.Deny, auth.ReasonInactive)
	}
	if got := s.count(); got != 2 {
		t.Errorf("asked %d times", got)
	}
}

// TestIntrospection_Shared: gateways share answers, within one configuration
// only, and never refusals.
func TestIntrospection_Shared(t *testing.T) {
	r := newRemote()
	a := newNode(t)
	a.share(r)
	b := a.beside(r)
	s := &server{answer: answerFor("bob", "")}
	tokens := s.opaque(t, nil)
	wantVerdict(t, "a", a.bearer("opaque", tokens), auth.Allow, auth.ReasonNone)
	r.eventuallyHas(t, 1)
	wantVerdict(t, "b", b.bearer("opaque", tokens), auth.Allow, auth.ReasonNone)
	if got := s.count(); got != 1 {
		t.Errorf("asked %d times by two gateways", got)
	}
	for name, change := range map[string]func(*verifier.IntrospectionRules){
		"audience": func(r *verifier.IntrospectionRules) { r.Audiences = []string{"others"} },
		"client":   func(r *verifier.IntrospectionRules) { r.ClientID = "another" },
		"URL":      func(r *verifier.IntrospectionRules) { r.URL = "https://idp2.example/" },
		"subject":  func(r *verifier.IntrospectionRules) { r.Identity.SubjectClaim = "jti" },
	} {
		before := s.count()
		c := a.beside(r)
		v := c.bearer("opaque", s.opaque(t, change))
		if s.count() == before {
			t.Errorf("%s: an answer for another configuration was used: %+v", name, v)
		}
		if (name == "audience") != (v.Outcome == auth.Deny) {
			t.Errorf("%s: %+v", name, v)
		}
	}
	// A cut-off reaches what is shared: the record is overtaken.
	a.cut(auth.CutOff{Issuer: "legacy", JTI: "o"})
	for _, n := range []*node{a, b, a.beside(r)} {
		n.look()
		wantVerdict(t, "cut off", n.bearer("opaque", tokens), auth.Deny, auth.ReasonRevoked)
	}
}

func TestIntrospection_Lifetimes(t *testing.T) {
	n := newNode(t)
	s := &server{answer: answerFor("bob", "")}
	tokens := s.opaque(t, func(r *verifier.IntrospectionRules) { r.TTL = 30 * time.Second })
	text, now := "opaque", time.Now()
	at := func(after time.Duration) auth.Verdict {
		v, _ := n.verifier.VerifyBearer(t.Context(), auth.FingerprintOf(text), text, tokens, netip.Addr{}, now.Add(after))
		return v
	}
	at(0)
	at(25 * time.Second)
	if got := s.count(); got != 1 {
		t.Errorf("asked %d times within the ttl", got)
	}
	at(31 * time.Second)
	if got := s.count(); got != 2 {
		t.Errorf("asked %d times after the ttl", got)
	}
	text = "short"
	s.answer = fmt.Sprintf(`{"active":true,"sub":"x","exp":%d}`, now.Unix()+10)
	wantVerdict(t, "lives", at(0), auth.Allow, auth.ReasonNone)
	wantVerdict(t, "past exp", at(11*time.Second), auth.Deny, auth.ReasonExpired)
	s.err = auth.ErrUnavailable
	text = "away"
	wantVerdict(t, "away", at(0), auth.CannotDecide, auth.ReasonNone)
}

// TestIntrospection_CutOffInTheMiddle: a cut-off that comes when the server has
// answered.
func TestIntrospection_CutOffInTheMiddle(t *testing.T) {
	n := newNode(t)
	s := &server{answer: answerFor("bob", "")}
	n.setHooks(verifier.Hooks{AfterLoad: func(int) {
		n.setHooks(verifier.Hooks{})
		n.cut(auth.CutOff{Issuer: "legacy", Subject: "bob"})
		n.look()
	}})
	wantVerdict(t, "in the middle", n.bearer("opaque", s.opaque(t, nil)), auth.Deny, auth.ReasonRevoked)
}

func TestCutOffs(t *testing.T) {
	c := verifier.NewCutOffs()
	c.Add(auth.CutOff{Issuer: "corp", Subject: "alice", IssuedBefore: 5000})
	c.Add(auth.CutOff{Issuer: "corp", Subject: "alice", IssuedBefore: 2000})
	c.Add(auth.CutOff{Issuer: "corp", JTI: "1", IssuedBefore: auth.AnyTime})
	for _, tc := range []struct {
		issuer, subject, jti string
		at                   uint32
		want                 bool
	}{
		{"corp", "alice", "", 4, true},
		{"corp", "alice", "", 5, false},
		{"corp", "alice", "", 0, true}, // not known
		{"corp", "Alice", "", 4, false},
		{"other", "alice", "", 4, false},
		{"corp", "bob", "1", 4_000_000_000, true},
		{"corp", "1", "", 4, false}, // a subject is no jti
		{"corp", "bob", "alice", 4, false},
		{"corp", "bob", "", 4, false},
	} {
		if got := c.Cut(tc.issuer, tc.subject, tc.jti, tc.at); got != tc.want {
			t.Errorf("%+v: %v", tc, got)
		}
	}
}

// TestBearer_KeysStayHere: what may be a key of ours, mistyped or not, is never
// shown to an introspection server.
func TestBearer_KeysStayHere(t *testing.T) {
	n := newNode(t)
	s := &server{answer: answerFor("bob", "")}
	tokens := s.opaque(t, nil)
	key := n.create("acme").Text.Reveal()
	for name, text := range map[string]string{
		"a key":        key,
		"cut off":      key[:len(key)-1],
		"one more":     key + "x",
		"with a dot":   key + ".",
		"in a word":    "x-" + key,
		"only a start": "ca_live_x",
	} {
		if v := n.bearer(text, tokens); (v.Outcome == auth.Allow) != (name == "a key") || v.Outcome == auth.CannotDecide {
			t.Errorf("%s: %+v", name, v)
		}
	}
	if got := s.count(); got != 0 {
		t.Errorf("the server was shown %d of them", got)
	}
	imported, _ := auth.NewImported([]string{"sk_[a-z]{8}", "[a-z]{12}"}, nil)
	n.verifier.SetImported(imported)
	wantVerdict(t, "a mistyped imported key", n.bearer("sk_abcdefgh", tokens), auth.Deny, auth.ReasonMalformed)
	wantVerdict(t, "of a form that anything has", n.bearer("abcdefghijkl", tokens), auth.Allow, auth.ReasonNone)
	wantVerdict(t, "another's", n.bearer("gho_16C7e42F292c6912E7710c838347Ae178B4a", tokens), auth.Allow, auth.ReasonNone)
	n.verifier.SetMinter(nil)
	wantVerdict(t, "while nobody knows what keys look like", n.bearer("gho_another", tokens), auth.CannotDecide, auth.ReasonNone)
}

// TestCutOff_AsHeadersHaveIt: a name that was copied from a header is the one in
// the token.
func TestCutOff_AsHeadersHaveIt(t *testing.T) {
	n, keys := newNode(t), newKeySet(t)
	tokens := keys.tokens(t, nil, nil)
	a, b, c := keys.token(t, "Jürgen", "1"), keys.token(t, "x", "50%/a b"), keys.token(t, "100%25", "3")
	n.cut(auth.CutOff{Issuer: "corp", Subject: "corp:J%C3%BCrgen"})
	n.cut(auth.CutOff{Issuer: "corp", JTI: "50%25/a%20b"})
	n.cut(auth.CutOff{Issuer: "corp", Subject: "100%25"})
	n.cut(auth.CutOff{Issuer: "corp", JTI: "50%ff"}) // no text when decoded
	n.cut(auth.CutOff{Issuer: "corp", JTI: "a%00b"})
	for _, name := range []string{"x\xff", "x\x00"} {
		if _, err := n.manage.CutOff(t.Context(), auth.CutOff{Issuer: "corp", JTI: name}, false); !errors.Is(err, auth.ErrInvalid) {
			t.Errorf("%q: %v", name, err)
		}
	}
	n.must(n.db.CutOffs(t.Context(), func(c auth.CutOff) error {
		if !utf8.ValidString(c.JTI+c.Subject) || strings.Contains(c.JTI+c.Subject, "\x00") {
			t.Errorf("%q can't be kept in every store", c.JTI+c.Subject)
		}
		return nil
	}))
	n.look()
	for name, text := range map[string]string{"subject": a, "jti": b, "as it is": c} {
		wantVerdict(t, name, n.bearer(text, tokens), auth.Deny, auth.ReasonRevoked)
	}
}

// TestCutOff_Kept: the cut-off of a token that may live for ever is kept for
// ever, that of others until they have expired.
func TestCutOff_Kept(t *testing.T) {
	n := newNode(t)
	ctx := t.Context()
	for _, c := range []struct {
		jti     string
		forEver bool
	}{{"jwt", false}, {"opaque", true}, {"first a jwt", false}, {"first a jwt", true}, {"first opaque", true}, {"first opaque", false}} {
		_, err := n.manage.CutOff(ctx, auth.CutOff{Issuer: "corp", JTI: c.jti}, c.forEver)
		n.must(err)
	}
	kept := map[string]bool{}
	n.must(n.db.CutOffs(ctx, func(c auth.CutOff) error {
		kept[c.JTI] = c.KeptUntil == 0
		if left := time.Until(time.UnixMilli(c.KeptUntil)); c.KeptUntil != 0 && (left < auth.MostTokenLifetime || left > auth.CutOffsKept) {
			t.Errorf("%s is kept for %s", c.JTI, left)
		}
		return nil
	}))
	for jti, want := range map[string]bool{"jwt": false, "opaque": true, "first a jwt": true, "first opaque": true} {
		if kept[jti] != want {
			t.Errorf("%s: for ever %v", jti, kept[jti])
		}
	}
	n.must(n.db.PruneCutOffs(ctx))
	count := 0
	n.must(n.db.CutOffs(ctx, func(auth.CutOff) error { count++; return nil }))
	if count != 4 {
		t.Errorf("%d are left", count)
	}
}

// TestClaims reads what issuers write.
func TestClaims(t *testing.T) {
	n := newNode(t)
	for name, tc := range map[string]struct {
		answer  string
		change  func(*verifier.IntrospectionRules)
		subject string // empty: refused
		scopes  string
		client  string
	}{
		"roles":           {`"sub":"a","realm_access":{"roles":["admin","Team Lead","b"]}`, func(r *verifier.IntrospectionRules) { r.Identity.ScopeClaim = "realm_access.roles" }, "legacy:a", "admin b", ""},
		"roles of null":   {`"sub":"a","realm_access":null`, func(r *verifier.IntrospectionRules) { r.Identity.ScopeClaim = "realm_access.roles" }, "legacy:a", "", ""},
		"scope of null":   {`"sub":"a","scope":null,"scp":["x"]`, nil, "legacy:a", "x", ""},
		"scopes twice":    {`"sub":"a","scope":"b  a b"`, nil, "legacy:a", "a b", ""},
		"client of Okta":  {`"sub":"a","cid":"app"`, nil, "legacy:a", "", "app"},
		"client of Entra": {`"sub":"a","appid":"app"`, nil, "legacy:a", "", "app"},
		"azp":             {`"sub":"a","azp":"app"`, nil, "legacy:a", "", "app"},
		"raw":             {`"sub":"auth0|1"`, func(r *verifier.IntrospectionRules) { r.Identity.RawSubject = true }, "auth0|1", "", ""},
		"raw, a URN":      {`"sub":"urn:x:1"`, func(r *verifier.IntrospectionRules) { r.Identity.RawSubject = true }, "urn:x:1", "", ""},
		"raw, another's": {`"sub":"corp:alice"`, func(r *verifier.IntrospectionRules) {
			r.Identity.RawSubject, r.Identity.Reserved = true, []string{"corp"}
		}, "", "", ""},
		"raw, a client":    {`"sub":"client:x"`, func(r *verifier.IntrospectionRules) { r.Identity.RawSubject = true }, "", "", ""},
		"nested subject":   {`"sub":"a","user":{"id":"u1"}`, func(r *verifier.IntrospectionRules) { r.Identity.SubjectClaim = "user.id" }, "legacy:u1", "", ""},
		"namespaced claim": {`"https://x.example/uid":"u2"`, func(r *verifier.IntrospectionRules) { r.Identity.SubjectClaim = "https://x.example/uid" }, "legacy:u2", "", ""},
		"one's own events": {`"sub":"a","events":{"mine":1}`, nil, "legacy:a", "", ""},
		"a required list": {`"sub":"a","groups":["x","y"]`, func(r *verifier.IntrospectionRules) {
			r.Identity.Required = []verifier.Claim{{Name: "groups", Values: []string{"y"}}}
		}, "legacy:a", "", ""},
		"not in the list": {`"sub":"a","groups":["x"]`, func(r *verifier.IntrospectionRules) {
			r.Identity.Required = []verifier.Claim{{Name: "groups", Values: []string{"y"}}}
		}, "", "", ""},
		"a required truth": {`"sub":"a","ok":true`, func(r *verifier.IntrospectionRules) {
			r.Identity.Required = []verifier.Claim{{Name: "ok", Values: []string{"true"}}}
		}, "legacy:a", "", ""},
		"required, null": {`"sub":"a","ok":null`, func(r *verifier.IntrospectionRules) { r.Identity.Required = []verifier.Claim{{Name: "ok"}} }, "", "", ""},
	} {
		s := &server{answer: `{"active":true,` + tc.answer + `}`}
		v := n.bearer(name, s.opaque(t, tc.change))
		if (v.Outcome == auth.Allow) != (tc.subject != "") || v.Outcome == auth.CannotDecide {
			t.Errorf("%s: %+v", name, v)
		} else if id := v.Identity; tc.subject != "" && (id.Subject != tc.subject || id.Scopes != tc.scopes || id.ClientID != tc.client) {
			t.Errorf("%s: %+v", name, id)
		}
	}
}

func TestMeta_SeveralValues(t *testing.T) {
	n := newNode(t)
	s := &server{answer: `{"active":true,"sub":"a","groups":["admin","dev"],"plan":"a,b","n":5}`}
	v := n.bearer("t", s.opaque(t, func(r *verifier.IntrospectionRules) { r.Identity.MetaClaims = []string{"groups", "plan", "n", "none"} }))
	id := v.Identity
	for _, tc := range []struct {
		name, value string
		want        bool
	}{{"groups", "admin", true}, {"groups", "dev", true}, {"groups", "admin,dev", false}, {"plan", "a,b", true}, {"plan", "a", false}, {"n", "5", true}, {"none", "", false}, {"groups", "", false}} {
		if got := id.HasMeta(tc.name, tc.value); got != tc.want {
			t.Errorf("%s %q: %v", tc.name, tc.value, got)
		}
	}
	if id.MetaValue("groups") != "admin,dev" || id.MetaValue("plan") != "a,b" {
		t.Errorf("%q %q", id.MetaValue("groups"), id.MetaValue("plan"))
	}
}

func BenchmarkVerifyBearer(b *testing.B) {
	n, keys := newNode(b), newKeySet(b)
	tokens, text, key := keys.tokens(b, nil, nil), keys.token(b, "alice", "1"), n.create("acme").Text.Reveal()
	ctx, now := b.Context(), time.Now()
	for name, one := range map[string]string{"key": key, "jwt": text} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				n.verifier.VerifyBearer(ctx, auth.FingerprintOf(one), one, tokens, netip.Addr{}, now)
			}
		})
	}
}

// TestBearer_RandomTextsAreNoKeys: what is in a random token by chance does not
// make a key of it.
func TestBearer_RandomTextsAreNoKeys(t *testing.T) {
	n := newNode(t)
	s := &server{answer: answerFor("bob", "")}
	tokens := s.opaque(t, nil)
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	raw := make([]byte, 344)
	for k := range 3000 {
		_, _ = rand.Read(raw)
		for i := range raw {
			raw[i] = alphabet[raw[i]%64]
		}
		copy(raw[100:], "ca_a_"+strings.Repeat("x", 60)) // the form, without the tag
		if v := n.bearer(string(raw), tokens); v.Outcome != auth.Allow {
			t.Fatalf("token %d: %+v", k, v)
		}
	}
}

// TestJWT_LongTokens: what a cached token costs does not grow with it.
func TestJWT_LongTokens(t *testing.T) {
	n, keys := newNode(t), newKeySet(t)
	tokens, text := keys.tokens(t, nil, nil), keys.token(t, "alice", strings.Repeat("j", 500))
	if v := n.bearer(text, tokens); v.Outcome != auth.Allow || len(text) < 900 {
		t.Fatalf("%d bytes: %+v", len(text), v)
	}
	ctx, now := t.Context(), time.Now()
	if got := testing.AllocsPerRun(1000, func() { n.verifier.VerifyBearer(ctx, auth.FingerprintOf(text), text, tokens, netip.Addr{}, now) }); got > 1 {
		t.Errorf("%.1f allocations for a cached token of %d bytes", got, len(text))
	}
}

// TestVerifySession_AnotherJudgement: a verdict on a session, from the store or
// from memory, is good under the configuration that judged its person only.
func TestVerifySession_AnotherJudgement(t *testing.T) {
	n := newNode(t)
	n.start()
	ring, err := secret.NewRing("test", make([]byte, 32))
	n.must(err)
	text := n.verifier.Minter().Tagged("x")
	fp := auth.SessionFingerprint("corp", text)
	n.must(n.db.InsertSession(t.Context(), ring, &auth.Session{
		ID: "ses_1", Fingerprint: fp, Login: "corp", Subject: "corp:alice", Sub: "alice", Environment: "live", Meta: auth.EncodeMeta([]string{"email"}, map[string]string{"email": "a@b"}), JudgedBy: "one",
	}, time.Now(), nil, time.Hour, time.Hour))
	n.look()
	for range 2 { // from the store, then from memory
		for judgedBy, want := range map[string]auth.Outcome{"one": auth.Allow, "two": auth.Deny, "": auth.Deny} {
			v := n.verifier.VerifySession(t.Context(), fp, text, judgedBy, time.Now())
			if v.Outcome != want || want == auth.Deny && v.Reason != auth.ReasonReconfigured || want == auth.Allow && v.Identity.MetaValue("email") != "a@b" {
				t.Errorf("by %q: %v %v", judgedBy, v.Outcome, v.Reason)
			}
		}
	}
}
