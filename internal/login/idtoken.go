package login

import (
	"context"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/jwt"
	"github.com/caddy-auth/caddy-auth/internal/strictjson"
)

const (
	// leeway is how far the provider's clock may be off.
	leeway = time.Minute
	// maxIDToken is the longest ID token, in bytes.
	maxIDToken = 16 << 10
	// maxName is the longest sub, sid or jti, in bytes.
	maxName = 255
	// logoutAge is how old a logout token may be.
	logoutAge = 5 * time.Minute
)

// KeySet has a provider's keys. Errors: auth.ErrNotFound, when there is no such
// key; anything else: that can't be told.
type KeySet interface {
	Key(ctx context.Context, kid, alg string, issued time.Time) (*jwt.Key, error)
}

// errToken says that a token is not what it should be.
type errToken string

func (e errToken) Error() string { return string(e) }

// judge checks what all tokens of a provider must be: signed by it, for us, and
// of now. An error that is no errToken says that it can't be told.
func (c *Client) judge(ctx context.Context, text string, types []string) (strictjson.Object, *jwt.Token, error) {
	if len(text) > maxIDToken {
		return nil, nil, errToken("it is too long")
	}
	t, r := jwt.Parse(text)
	if r != auth.ReasonNone {
		return nil, nil, errToken("it is no signed token: " + r.String())
	}
	if t.Type != "" && !slices.ContainsFunc(types, t.IsType) {
		return nil, nil, errToken("its typ is of another kind of token")
	}
	claims := t.Claims
	if iss, ok := claims.Text("iss"); !ok || iss != c.cfg.Issuer {
		return nil, nil, errToken("another issuer made it")
	}
	audiences, ok := claims.Words("aud")
	azp, ok2 := claims.Text("azp")
	switch {
	case !ok || !ok2 || !slices.Contains(audiences, c.cfg.ClientID):
		return nil, nil, errToken("it is for others")
	case len(audiences) > 1 && azp == "", azp != "" && azp != c.cfg.ClientID: // OpenID Connect Core, 3.1.3.7
		return nil, nil, errToken("its azp is not this client")
	}
	issued, hasIat, ok := claims.Date("iat")
	expires, hasExp, ok2 := claims.Date("exp")
	now := c.now()
	switch at := now.UnixMilli(); {
	case !ok || !ok2 || !hasIat || !hasExp && types[0] == "JWT":
		return nil, nil, errToken("it does not say when it was made or ends")
	case hasExp && at >= expires+leeway.Milliseconds():
		return nil, nil, errToken("it has expired")
	case issued > at+leeway.Milliseconds():
		return nil, nil, errToken("it is of the future")
	}
	key, err := c.keys.Key(ctx, t.KeyID, t.Algorithm, time.UnixMilli(issued))
	if errors.Is(err, auth.ErrNotFound) {
		return nil, nil, errToken("the provider has no such key")
	}
	if err != nil {
		return nil, nil, fmt.Errorf("the provider's keys: %w", err)
	}
	if r := t.Verify(key, c.cfg.Algorithms); r != auth.ReasonNone {
		return nil, nil, errToken("its signature is not good: " + r.String())
	}
	return claims, t, nil
}

// judgeID checks an ID token (OpenID Connect Core, 3.1.3.7): nonce is what was
// sent, and access the access token that came with it.
func (c *Client) judgeID(ctx context.Context, text, nonce, access string) (strictjson.Object, error) {
	claims, t, err := c.judge(ctx, text, []string{"JWT"})
	if err != nil {
		return nil, err
	}
	if have, ok := claims.Text("nonce"); !ok || subtle.ConstantTimeCompare([]byte(have), []byte(nonce)) != 1 {
		return nil, errToken("its nonce is not the one that was sent")
	}
	if sub, ok := claims.Text("sub"); !ok || sub == "" || len(sub) > maxName {
		return nil, errToken("it has no sub that can be used")
	}
	if hash, ok := claims.Text("at_hash"); !ok || hash != "" && hash != halfHash(t.Algorithm, access) { // 3.1.3.8
		return nil, errToken("its at_hash is of another access token")
	}
	if _, there := claims["events"]; there {
		return nil, errToken("it is a logout token")
	}
	return claims, nil
}

// halfHash is the left half of a token's hash (OpenID Connect Core, 3.1.3.6).
func halfHash(algorithm, text string) string {
	var sum []byte
	switch algorithm {
	case "RS384", "PS384", "ES384":
		s := sha512.Sum384([]byte(text))
		sum = s[:]
	case "RS512", "PS512", "ES512", "EdDSA", "Ed25519":
		s := sha512.Sum512([]byte(text))
		sum = s[:]
	default:
		s := sha256.Sum256([]byte(text))
		sum = s[:]
	}
	return base64.RawURLEncoding.EncodeToString(sum[:len(sum)/2])
}

// logoutEvent is the event of logout tokens (OpenID Connect Back-Channel Logout
// 1.0, 2.4).
const logoutEvent = "http://schemas.openid.net/event/backchannel-logout"

// LoggedOut is whom a provider says to have logged out: everything of a sub, or
// one of its sessions.
type LoggedOut struct {
	Sub, SID string
	// Before is when sessions that are concerned began: who logs in after that is
	// not, so that a token which is sent again ends nothing new.
	Before time.Time
	At     time.Time // when it was said
}

// JudgeLogout checks a logout token (Back-Channel Logout, 2.6). Errors: an
// *Error.
func (c *Client) JudgeLogout(ctx context.Context, text string) (LoggedOut, error) {
	var out LoggedOut
	claims, _, err := c.judge(ctx, text, []string{"logout+jwt", "JWT"})
	var bad errToken
	switch {
	case errors.As(err, &bad):
		return out, refusedError("a logout token is refused", bad)
	case err != nil:
		return out, unavailableError(err)
	}
	issued, _, _ := claims.Date("iat")
	events, _ := claims["events"].(strictjson.Object)
	_, event := events[logoutEvent].(strictjson.Object)
	_, nonce := claims["nonce"]
	jti, ok1 := claims.Text("jti")
	sub, ok2 := claims.Text("sub")
	sid, ok3 := claims.Text("sid")
	switch {
	case !event, nonce:
		bad = "it is no logout token"
	case !ok1 || !ok2 || !ok3 || sub+sid == "" || jti == "" || len(sub) > maxName || len(sid) > maxName || len(jti) > maxName:
		bad = "it does not say who is logged out, or has no jti"
	case c.now().Sub(time.UnixMilli(issued)) > logoutAge:
		bad = "it is too old"
	}
	if bad != "" {
		return out, refusedError("a logout token is refused", bad)
	}
	at := time.UnixMilli(issued).Add(time.Second) // iat has no parts of a second
	return LoggedOut{sub, sid, at.Add(leeway), at}, nil
}

// peek reads who a token says it is from and about, without believing it.
func peek(text string) (iss, sub string) {
	t, r := jwt.Parse(text)
	if r != auth.ReasonNone {
		return "", ""
	}
	iss, _ = t.Claims.Text("iss")
	sub, _ = t.Claims.Text("sub")
	return iss, sub
}
