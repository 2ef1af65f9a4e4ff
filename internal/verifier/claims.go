package verifier

import (
	"encoding/json"
	"slices"
	"strings"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/secret"
	"github.com/caddy-auth/caddy-auth/internal/strictjson"
)

const (
	maxSubjectLen = 512
	maxScopesLen  = 4096
	maxMetaLen    = 1024
)

// ClaimRules say how claims become an identity.
type ClaimRules struct {
	SubjectClaim string   // default: sub
	RawSubject   bool     // without the issuer's name in front
	Reserved     []string // what stands before a colon in others' subjects: no raw subject may begin so
	ScopeClaim   string   // default: scope, else scp
	Environment  string   // default: live
	Required     []Claim  // what must be there besides
	MetaClaims   []string // what is kept as metadata
}

// Claim is a claim and the values of which it must have one; without values it
// must be there.
type Claim struct {
	Name   string
	Values []string
}

// Check says what is wrong with rules.
func (c *ClaimRules) Check() error {
	if c.Environment != "" {
		return secret.CheckEnvironment(c.Environment)
	}
	return nil
}

// clientSubject stands before the name of a client that speaks for itself,
// where an issuer has no sub for it. No subject may begin like that, so that
// nobody is taken for a client (RFC 9700, 4.15).
const clientSubject = "client:"

// Read fills an identity of id.Issuer from claims, and returns the subject as the issuer
// calls it. Reasons: ReasonClaims.
func (c *ClaimRules) Read(id *auth.Identity, claims strictjson.Object) (subject string, r auth.Reason) {
	for _, want := range c.Required {
		if !want.in(claims) {
			return "", auth.ReasonClaims
		}
	}
	client, ok1 := claims.Text("client_id")
	for _, name := range []string{"azp", "cid", "appid"} { // what others call it
		if client == "" {
			client, _ = claims.Text(name)
		}
	}
	jti, ok2 := claims.Text("jti")
	subject, ok3 := c.subject(claims)
	scopes, ok4 := c.scopes(claims)
	if strings.Contains(subject+jti, "\x00") { // which no store could cut off
		return "", auth.ReasonClaims
	}
	if !ok1 || !ok2 || !ok3 || !ok4 || subject == "" || len(subject) > maxSubjectLen || len(jti) > maxSubjectLen || len(client) > maxSubjectLen {
		return "", auth.ReasonClaims
	}
	id.Subject, id.CredentialID, id.ClientID, id.Scopes = auth.PartOf(id.Issuer, subject), jti, client, scopes
	if c.RawSubject {
		whose, _, ok := strings.Cut(subject, ":")
		if ok && (whose+":" == clientSubject || slices.Contains(c.Reserved, whose)) {
			return "", auth.ReasonClaims
		}
		id.Subject = subject
	}
	if id.Environment = c.Environment; id.Environment == "" {
		id.Environment = auth.EnvironmentLive
	}
	var ok bool
	if id.Meta, ok = c.meta(claims); !ok {
		return "", auth.ReasonClaims
	}
	return subject, auth.ReasonNone
}

func (c *ClaimRules) subject(claims strictjson.Object) (string, bool) {
	name := c.SubjectClaim
	if name == "" {
		name = "sub"
	}
	v, there := claims.Find(name)
	if !there {
		return "", true
	}
	s, ok := v.(string)
	return s, ok
}

// scopes returns the scopes as one sorted text: a string of words (RFC 6749,
// 3.3; RFC 8693, 4.2) or an array of them, as some issuers write roles.
func (c *ClaimRules) scopes(claims strictjson.Object) (string, bool) {
	names := []string{c.ScopeClaim}
	if c.ScopeClaim == "" {
		names = []string{"scope", "scp"}
	}
	for _, name := range names {
		v, there := claims.Find(name)
		if !there || v == nil {
			continue
		}
		words, ok := strictjson.Strings(v)
		if !ok {
			return "", false
		}
		if _, text := v.(string); text {
			return joinScopes(strings.FieldsFunc(words[0], func(r rune) bool { return r == ' ' }))
		}
		// Roles and groups that can't be scopes grant nothing.
		return joinScopes(slices.DeleteFunc(words, func(w string) bool { return auth.CheckScope(w) != nil }))
	}
	return "", true
}

func joinScopes(words []string) (string, bool) {
	total := 0
	for _, w := range words {
		if total += len(w) + 1; total > maxScopesLen || auth.CheckScope(w) != nil {
			return "", false
		}
	}
	words = slices.Clone(words)
	slices.Sort(words)
	return strings.Join(slices.Compact(words), " "), true
}

// meta keeps claims for headers and conditions.
func (c *ClaimRules) meta(claims strictjson.Object) (string, bool) {
	var names []string
	values := map[string]string{}
	for _, name := range c.MetaClaims {
		v, there := claims.Find(name)
		if !there {
			continue
		}
		words, ok := plainValues(v)
		text := auth.JoinMeta(words)
		if !ok || len(text) > maxMetaLen || slices.ContainsFunc(words, func(w string) bool { return strings.ContainsAny(w, "\x1d\x1e\x1f") }) {
			return "", false
		}
		names, values[name] = append(names, name), text
	}
	slices.Sort(names)
	return auth.EncodeMeta(names, values), true
}

// in reports whether claims have the claim, with one of its values.
func (c *Claim) in(claims strictjson.Object) bool {
	v, there := claims.Find(c.Name)
	if !there || v == nil {
		return false
	}
	if len(c.Values) == 0 {
		return true
	}
	have, ok := plainValues(v)
	return ok && slices.ContainsFunc(have, func(s string) bool { return slices.Contains(c.Values, s) })
}

// plainValues are a value's texts: of a string, a number, true or false, or of
// an array of strings.
func plainValues(v any) ([]string, bool) {
	switch v := v.(type) {
	case bool:
		if v {
			return []string{"true"}, true
		}
		return []string{"false"}, true
	case json.Number:
		return []string{v.String()}, true
	}
	return strictjson.Strings(v)
}
