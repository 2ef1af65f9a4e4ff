package oauth

import (
	"errors"
	"mime"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/caddy-auth/caddy-auth/internal/body"
)

const (
	// MaxBody bounds a request's body; maxParameters how many there are in it.
	MaxBody       = 16 << 10
	maxParameters = 64
)

// parameters are the names that the endpoints read. None belongs into a URL.
var parameters = []string{
	"grant_type", "scope", "client_id", "client_secret", "client_assertion", "client_assertion_type", "token", "token_type_hint",
	"subject_token", "subject_token_type", "actor_token", "actor_token_type", "requested_token_type", "resource", "audience",
	"username", "password", "code", "refresh_token", "assertion", "redirect_uri", "code_verifier",
}

// repeatable are the names that may stand more than once (RFC 8693, 2.1;
// RFC 8707, 2).
var repeatable = []string{"resource", "audience"}

// form is what a request asks for. Parameters without a value are omitted
// (RFC 6749, 3.2).
type form map[string][]string

func (f form) get(name string) string {
	if len(f[name]) == 0 {
		return ""
	}
	return f[name][0]
}

// fromFiles are the names whose values people read from files (curl's @file). The
// line end that a file ends with is no part of the value, and no credential has one.
var fromFiles = []string{"client_secret", "client_assertion", "subject_token", "token"}

// readForm reads a request (RFC 6749, 3.2): POST, one form, no parameter twice,
// none in the URL.
func readForm(w http.ResponseWriter, r *http.Request) (form, *Failure) {
	if f := checkRequest(r); f != nil {
		f.Unread = true
		return nil, f
	}
	text, err := body.Read(w, r, MaxBody)
	if errors.Is(err, body.ErrTooBig) {
		f := bad(invalidRequest, "the body is too big")
		f.Status, f.Unread = http.StatusRequestEntityTooLarge, true
		return nil, f
	}
	if err != nil {
		f := bad(invalidRequest, "the body did not arrive as a whole")
		f.Unread = true
		return nil, f
	}
	return parseForm(string(text))
}

// checkRequest judges all but the body.
func checkRequest(r *http.Request) *Failure {
	if r.Method != http.MethodPost {
		f := bad(invalidRequest, "the method must be POST")
		f.Status = http.StatusMethodNotAllowed
		return f
	}
	if name := inURL(r.URL.RawQuery); name != "" {
		return bad(invalidRequest, "the parameter "+name+" is in the URL, where logs keep it: send it in the body")
	}
	if kinds := r.Header["Content-Type"]; len(kinds) != 1 || !isForm(kinds[0]) {
		return bad(invalidRequest, "the body must be application/x-www-form-urlencoded")
	}
	if len(r.Header["Content-Encoding"]) > 0 {
		return bad(invalidRequest, "the body must not be compressed")
	}
	return nil
}

// inURL returns the first parameter of ours in a query, however it is spelt.
func inURL(query string) string {
	for _, pair := range strings.FieldsFunc(query, func(r rune) bool { return r == '&' || r == ';' }) {
		name, _, _ := strings.Cut(pair, "=")
		if plain, err := url.QueryUnescape(name); err == nil {
			name = plain
		}
		if name = strings.ToLower(strings.TrimSpace(name)); slices.Contains(parameters, name) {
			return name
		}
	}
	return ""
}

func isForm(contentType string) bool {
	kind, params, err := mime.ParseMediaType(contentType)
	if err != nil || kind != "application/x-www-form-urlencoded" {
		return false
	}
	charset, given := params["charset"]
	return !given || strings.EqualFold(charset, "utf-8")
}

func parseForm(text string) (form, *Failure) {
	f := form{}
	n := 0
	for pair := range strings.SplitSeq(text, "&") {
		if pair == "" {
			continue
		}
		if n++; n > maxParameters {
			return nil, bad(invalidRequest, "too many parameters")
		}
		name, value, _ := strings.Cut(pair, "=")
		name, err1 := url.QueryUnescape(name)
		value, err2 := url.QueryUnescape(value)
		if slices.Contains(fromFiles, name) {
			value = strings.TrimSuffix(strings.TrimSuffix(value, "\n"), "\r")
		}
		if err1 != nil || err2 != nil || !plainText(name) || !plainText(value) {
			return nil, bad(invalidRequest, "the body is no form: a bad escape, a control character, or not UTF-8")
		}
		if _, twice := f[name]; twice && !slices.Contains(repeatable, name) {
			if !slices.Contains(parameters, name) {
				name = "a parameter"
			}
			return nil, bad(invalidRequest, name+" is given more than once")
		}
		f[name] = append(f[name], value)
	}
	for name, values := range f {
		if values = slices.DeleteFunc(values, func(v string) bool { return v == "" }); len(values) == 0 {
			delete(f, name)
		} else {
			f[name] = values
		}
	}
	return f, nil
}

// plainText reports whether a text has no control characters.
func plainText(s string) bool {
	return utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool { return r < 0x20 || r == 0x7f })
}
