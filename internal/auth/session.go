package auth

// Session is the session of a person who logged in. Times are unix
// milliseconds, 0 meaning "not".
type Session struct {
	ID            string // ses_ + UUIDv7
	Fingerprint   Fingerprint
	Login         string // whose: its name in the configuration
	Subject       string // as upstreams see it: PartOf(Login, sub), unless it is raw
	Sub           string // as the provider calls the person
	SID           string // what the provider calls its own session (OpenID Connect Back-Channel Logout, 2.1)
	Environment   string
	Scopes        string // space-separated, sorted
	Meta          string // see EncodeMeta
	CreatedAt     int64
	SeenAt        int64 // about when it was used last
	IdleUntil     int64 // it ends then, unless it is used
	ExpiresAt     int64 // it ends then
	RevokedAt     int64
	RevokedReason string
	HasTokens     bool // of the provider

	// JudgedBy is a digest of the configuration that judged who signed in: the
	// provider, the client, the rules for claims. Under another one the session has
	// ended. Authority is a digest of the provider and the client, the only place
	// that its tokens are sent to.
	JudgedBy  string
	Authority string
}

// MetaJudgedBy is the name of JudgedBy in a verdict's metadata. No operator can
// give such a name.
const MetaJudgedBy = ":judged"

// SessionFingerprint is what a session is known by that the cookie of a login
// holds. It is another than that of the same text as a key or a token, or in the
// cookie of another login: a cookie must not be good in a header, where nobody
// asks which page sent it, nor where other people are let in.
func SessionFingerprint(login, cookie string) Fingerprint {
	return FingerprintOf("session\x00" + login + "\x00" + cookie)
}

// NotAfter is when the session ends if it is not used again.
func (s *Session) NotAfter() int64 { return min(s.IdleUntil, s.ExpiresAt) }

// SessionState is one word for what a session can do.
type SessionState string

// The states of sessions.
const (
	SessionActive  SessionState = "active"
	SessionExpired SessionState = "expired"
	SessionEnded   SessionState = "ended" // by a logout, an operator or the provider
)

// State returns the session's state at a time in unix milliseconds.
func (s *Session) State(now int64) SessionState {
	switch {
	case s.RevokedAt != 0:
		return SessionEnded
	case s.NotAfter() <= now:
		return SessionExpired
	}
	return SessionActive
}
