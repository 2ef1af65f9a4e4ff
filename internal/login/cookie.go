package login

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"slices"
	"strings"

	"github.com/caddy-auth/caddy-auth/internal/auth"
)

// Names of cookies begin so, and no upstream sees or sets one. The prefix
// __Host- makes browsers take them from this host only, over TLS only (RFC
// 6265bis, 4.1.3.2).
const (
	cookiePrefix  = "__Host-caddy-auth-"
	sessionPrefix = cookiePrefix + "session-"
	statePrefix   = cookiePrefix + "state-"
)

// SessionCookie is the name of the cookie that holds a session of a login.
func SessionCookie(login string) string { return sessionPrefix + login }

// stateCookie is the name of the cookie that binds a sign-in under way to its
// browser. Each has its own, so that tabs don't meet.
func stateCookie(login, state string) string {
	sum := sha256.Sum256([]byte(state))
	return stateCookies(login) + hex.EncodeToString(sum[:8])
}

func stateCookies(login string) string { return statePrefix + login + "~" } // which names don't have

// Cookie is one of ours that a request had.
type Cookie struct{ Name, Value string }

// TakeCookies removes our cookies from a request's headers and returns them. It
// costs nothing where there are none.
func TakeCookies(h http.Header) (ours []Cookie) {
	lines := h["Cookie"]
	for i := range lines {
		if strings.Contains(lines[i], cookiePrefix) {
			return takeCookies(h, lines)
		}
	}
	return nil
}

func takeCookies(h http.Header, lines []string) (ours []Cookie) {
	var left []string
	for _, line := range lines {
		var rest []string
		for part := range strings.SplitSeq(line, ";") {
			name, value, _ := strings.Cut(part, "=")
			if name = strings.Trim(name, " \t"); strings.HasPrefix(name, cookiePrefix) {
				ours = append(ours, Cookie{name, strings.Trim(value, " \t")})
			} else if strings.Trim(part, " \t") != "" {
				rest = append(rest, strings.Trim(part, " \t"))
			}
		}
		if len(rest) > 0 {
			left = append(left, strings.Join(rest, "; "))
		}
	}
	if h["Cookie"] = left; len(left) == 0 {
		delete(h, "Cookie")
	}
	return ours
}

// GuardCookies stops an upstream from setting the cookies of logins, which would
// let it choose a person's session, and from making browsers clear them. It keeps
// the cookies in own, which this gateway's handlers set. Call it for every part of
// an answer that has headers.
func GuardCookies(h http.Header, own []string) {
	guardClearing(h)
	announced(h)
	lines := h["Set-Cookie"]
	for i := range lines {
		if strings.Contains(strings.ToLower(lines[i]), strings.ToLower(cookiePrefix)) {
			guardCookies(h, lines, own)
			return
		}
	}
}

// GuardTrailers does the same for what an upstream sends after its body.
func GuardTrailers(h http.Header) {
	for name := range h {
		if plain := http.CanonicalHeaderKey(strings.TrimPrefix(name, http.TrailerPrefix)); plain != name && forbiddenTrailer(plain) {
			delete(h, name)
		}
	}
}

// announced removes from Trailer what GuardTrailers would: a header that is
// announced there is sent as it is when the answer ends.
func announced(h http.Header) {
	lines := h["Trailer"]
	if len(lines) == 0 {
		return
	}
	var left []string
	for _, line := range lines {
		for name := range strings.SplitSeq(line, ",") {
			name = strings.Trim(name, " \t")
			if plain := http.CanonicalHeaderKey(strings.TrimPrefix(http.CanonicalHeaderKey(name), http.TrailerPrefix)); auth.FieldName(name) && !forbiddenTrailer(plain) {
				left = append(left, name)
			}
		}
	}
	if h["Trailer"] = left; len(left) == 0 {
		delete(h, "Trailer")
	}
}

func forbiddenTrailer(name string) bool { return name == "Set-Cookie" || name == clearSiteData }

const clearSiteData = "Clear-Site-Data"

// clearable is what an upstream may clear beside cookies, which would sign people
// out (Clear Site Data, 3.1).
const clearable = `"cache", "clientHints", "executionContexts", "prefetchCache", "prerenderCache", "storage"`

// guardClearing leaves the cookies out of what an upstream tells a browser to
// clear.
func guardClearing(h http.Header) {
	lines := h[clearSiteData]
	if len(lines) == 0 {
		return
	}
	var left []string
	for kind := range strings.SplitSeq(strings.Join(lines, ","), ",") {
		switch kind = strings.Trim(kind, " \t"); {
		case strings.EqualFold(kind, `"cookies"`):
		case strings.EqualFold(kind, `"*"`):
			h[clearSiteData] = []string{clearable}
			return
		case kind != "":
			left = append(left, kind)
		}
	}
	if delete(h, clearSiteData); len(left) > 0 {
		h[clearSiteData] = []string{strings.Join(left, ", ")}
	}
}

func guardCookies(h http.Header, lines, own []string) {
	var left []string
	for _, line := range lines {
		name, _, _ := strings.Cut(line, "=")
		// Browsers look at the prefix in any case, and at a cookie without a name
		// they look at its value (RFC 6265bis, 5.6).
		foreign := !strings.HasPrefix(strings.ToLower(strings.TrimLeft(name, " \t")), strings.ToLower(cookiePrefix)) && !strings.HasPrefix(strings.TrimLeft(line, " \t"), "=")
		if foreign || slices.Contains(own, line) {
			left = append(left, line)
		}
	}
	if h["Set-Cookie"] = left; len(left) == 0 {
		delete(h, "Set-Cookie")
	}
}

// value returns what the cookie with a name holds; "" without it, and where
// there are several, which no browser sends.
func value(cookies []Cookie, name string) string {
	found, n := "", 0
	for _, c := range cookies {
		if c.Name == name {
			found, n = c.Value, n+1
		}
	}
	if n != 1 {
		return ""
	}
	return found
}

// Session returns what a login's cookie holds, and how many there are: two are
// two credentials.
func Session(cookies []Cookie, login string) (text string, n int) {
	name := SessionCookie(login)
	for _, c := range cookies {
		if c.Name == name {
			text, n = c.Value, n+1
		}
	}
	return text, n
}

// NewSession returns a new text for a session's cookie, of 260 random bits and
// without a tag.
func NewSession() string { return rand.Text() + rand.Text() }

// MayBeSession reports whether a text has the form of NewSession with a tag behind
// it.
func MayBeSession(text string) bool {
	name, tag, ok := strings.Cut(text, "-")
	return ok && tag != "" && len(name) == len(NewSession()) && strings.Trim(name, "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567") == ""
}

// SetCookie is the Set-Cookie line of one of our cookies, kept until the browser
// is closed or, with seconds, for that long; negative: it is removed.
func SetCookie(name, value string, seconds int) string {
	// Lax: a link from elsewhere leads to somebody who is signed in, a form from
	// elsewhere does not.
	c := http.Cookie{Name: name, Value: value, Path: "/", MaxAge: seconds, Secure: true, HttpOnly: true, SameSite: http.SameSiteLaxMode}
	return c.String()
}
