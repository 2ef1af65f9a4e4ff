package verifier

import (
	"encoding/base64"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/redact"
	"github.com/caddy-auth/caddy-auth/internal/secret"
)

// MaxCredentialLen bounds a credential before it is hashed.
const MaxCredentialLen = 8192

const authorization = "Authorization"

// Presented is what a request's credential headers held.
type Presented struct {
	// Credential is the one credential, if Refusal is nil and it isn't empty.
	Credential string
	// Bearer says it came as Authorization: Bearer.
	Bearer bool
	// Foreign says Authorization held a scheme that isn't ours; such a header
	// is left where it was.
	Foreign bool
	// Refusal says why the headers can't be used.
	Refusal *auth.Refusal
}

// Sources are the headers that carry credentials on a site.
type Sources struct {
	keyHeaders []string // canonical, without Authorization
	bearer     bool
	folded     map[string]bool
	advice     string // how to send a credential, for details
}

var forbiddenSources = []string{"Cookie", "Host", "Connection", "Content-Length", "Content-Type", "Transfer-Encoding", "Te", "Trailer", "Upgrade", "Proxy-Authorization", "Referer", "Origin"}

// NewSources compiles header names.
func NewSources(headers []string) (*Sources, error) {
	s := &Sources{folded: map[string]bool{}}
	var ways []string
	for _, h := range headers {
		if !auth.FieldName(h) {
			return nil, auth.Invalidf("header %q is not a field name", h)
		}
		name := http.CanonicalHeaderKey(h)
		if slices.Contains(forbiddenSources, name) {
			return nil, auth.Invalidf("header %s can't carry a credential", h)
		}
		if name == authorization {
			s.bearer = true
			ways = append(ways, "Authorization: Bearer <key>")
			continue
		}
		if slices.Contains(s.keyHeaders, name) {
			continue
		}
		s.keyHeaders = append(s.keyHeaders, name)
		s.folded[string(auth.AppendFolded(nil, name))] = true
		ways = append(ways, h+": <key>")
	}
	if len(ways) == 0 {
		return nil, auth.Invalidf("no header to read credentials from")
	}
	s.advice = strings.Join(ways, " or ")
	return s, nil
}

// KeyHeaders are the canonical names of the headers that carry keys.
func (s *Sources) KeyHeaders() []string { return s.keyHeaders }

// Take reads the credential headers of h and, unless keep, removes them, with
// every other spelling of them that an upstream might fold into one.
func (s *Sources) Take(h http.Header, prefixes []string, keep bool) Presented {
	p := s.read(h, prefixes)
	if keep {
		return p
	}
	for _, name := range s.keyHeaders {
		delete(h, name)
	}
	if s.bearer && !p.Foreign {
		delete(h, authorization)
	}
	return p
}

// Same reports whether two sources are the same headers.
func (s *Sources) Same(o *Sources) bool {
	return s.bearer == o.bearer && slices.Equal(s.keyHeaders, o.keyHeaders)
}

// Aliases are the folded names of the key headers. Callers must not change it.
func (s *Sources) Aliases() map[string]bool { return s.folded }

func (s *Sources) read(h http.Header, prefixes []string) Presented {
	var p Presented
	count := 0
	empty := false // a header of keys that holds none
	for _, name := range s.keyHeaders {
		vals, ok := h[name]
		empty = empty || ok
		for _, v := range vals {
			if !blank(v) {
				p.Credential = v
				count++
			}
		}
	}
	fromKeyHeader := count > 0
	var authz []string
	if s.bearer {
		authz = h[authorization]
	}
	if len(authz) == 1 && foreignScheme(authz[0]) {
		p.Foreign = !hidesKey(authz[0], prefixes)
	}
	if fromKeyHeader {
		for _, v := range authz { // what is empty, or of a scheme that isn't ours, is no second credential
			switch {
			case isBearer(v) && !blank(v[len("Bearer"):]), hidesKey(v, prefixes):
				count++
			case len(authz) == 1 && !isBearer(v) && !blank(v):
				p.Foreign = true
			}
		}
	} else {
		count += len(authz)
	}
	switch {
	case count == 0 && empty:
		return Presented{Refusal: invalid("empty credential: send " + s.advice)}
	case count == 0:
		return p
	case count > 1:
		return Presented{Foreign: p.Foreign, Refusal: invalid("more than one credential: send one of " + s.advice)}
	case fromKeyHeader:
		if refusal := checkCredential(p.Credential, s.advice); refusal != nil {
			return Presented{Foreign: p.Foreign, Refusal: refusal}
		}
		if isAccessToken(p.Credential, prefixes) {
			return Presented{Foreign: p.Foreign, Refusal: invalid("an access token goes into Authorization: Bearer <token> (RFC 6750, 2.1)")}
		}
		return p
	}
	if !isBearer(authz[0]) && hidesKey(authz[0], prefixes) {
		return Presented{Refusal: invalid("an API key under another scheme, or none: send " + s.advice)}
	}
	if p.Foreign {
		return p
	}
	return readBearer(authz[0], s.advice)
}

// blank reports whether a header's value is empty.
func blank(v string) bool { return strings.Trim(v, " \t") == "" }

// isAccessToken reports whether a credential has the form of a token of ours.
func isAccessToken(c string, prefixes []string) bool {
	const mark = "_" + string(secret.AccessToken) + "_"
	i := strings.IndexByte(c, '_')
	return i > 0 && strings.HasPrefix(c[i:], mark) && secret.KindOf(c) == secret.AccessToken && slices.Contains(prefixes, c[:i])
}

// readBearer parses an Authorization value of the Bearer scheme (RFC 6750,
// 2.1), or of none.
func readBearer(value, advice string) Presented {
	if !isBearer(value) {
		return Presented{Refusal: invalid("malformed Authorization header: send " + advice)}
	}
	token := value[len("Bearer"):]
	if strings.Trim(token, " \t") == "" {
		return Presented{Refusal: invalid("Bearer without a token: send " + advice)}
	}
	if token[0] != ' ' || token[1] == ' ' {
		return Presented{Refusal: invalid("malformed Authorization header: want one space between Bearer and the token")}
	}
	token = token[1:]
	if r := checkCredential(token, advice); r != nil {
		return Presented{Refusal: r}
	}
	if !isB64Token(token) {
		return Presented{Refusal: invalid("malformed Authorization header: the token has characters that RFC 6750 does not allow")}
	}
	return Presented{Credential: token, Bearer: true}
}

// isBearer reports whether value's scheme is Bearer, in any case (RFC 9110, 11.1).
func isBearer(value string) bool {
	const scheme = "bearer"
	if len(value) < len(scheme) || !strings.EqualFold(value[:len(scheme)], scheme) {
		return false
	}
	return len(value) == len(scheme) || value[len(scheme)] == ' ' || value[len(scheme)] == '\t'
}

// foreignScheme reports whether value is well-formed credentials of a scheme
// other than Bearer: a token, one or more spaces, then something.
func foreignScheme(value string) bool {
	scheme, rest, ok := strings.Cut(value, " ")
	return ok && auth.FieldName(scheme) && !strings.EqualFold(scheme, "bearer") && strings.Trim(rest, " \t") != ""
}

// hidesKey reports whether a value holds a text shaped like one of our keys,
// in clear or as a user name or password of Basic (RFC 7617, 2).
func hidesKey(value string, prefixes []string) bool {
	if redact.HasKey(value, prefixes) {
		return true
	}
	scheme, rest, _ := strings.Cut(value, " ")
	if !strings.EqualFold(scheme, "basic") {
		return false
	}
	// Decoders differ in what padding and which alphabet they take.
	text := strings.NewReplacer("-", "+", "_", "/").Replace(strings.Trim(rest, " \t="))
	raw, err := base64.RawStdEncoding.DecodeString(text)
	return err == nil && redact.HasKey(string(raw), prefixes)
}

func checkCredential(c, advice string) *auth.Refusal {
	if strings.Trim(c, " \t") == "" {
		return invalid("empty credential: send " + advice)
	}
	if len(c) > MaxCredentialLen {
		return invalid(fmt.Sprintf("the credential is longer than %d bytes", MaxCredentialLen))
	}
	for i := range len(c) {
		switch b := c[i]; {
		case b == ',':
			return invalid("more than one credential, or a comma in one: send " + advice)
		case b <= 0x20 || b >= 0x7f:
			return invalid("the credential has blanks, control or non-ASCII characters: send " + advice)
		}
	}
	return nil
}

// isB64Token is RFC 6750's b64token.
func isB64Token(s string) bool {
	trimmed := strings.TrimRight(s, "=")
	if trimmed == "" {
		return false
	}
	for i := range len(trimmed) {
		switch b := trimmed[i]; {
		case b >= '0' && b <= '9', b|0x20 >= 'a' && b|0x20 <= 'z':
		case strings.IndexByte("-._~+/", b) >= 0:
		default:
			return false
		}
	}
	return true
}

func invalid(detail string) *auth.Refusal {
	return &auth.Refusal{Code: auth.CodeInvalidRequest, Detail: detail}
}
