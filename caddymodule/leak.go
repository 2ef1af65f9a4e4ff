package caddymodule

import (
	"context"
	"net/http"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/manage"
	"github.com/caddy-auth/caddy-auth/internal/secret"
	"github.com/caddy-auth/caddy-auth/internal/store"
)

const (
	// leakEvery is how often one credential's leak is written down.
	leakEvery = time.Minute
	// leakWorkers bounds how many leaked keys are looked up at once; more are
	// dropped, since who sends them can send them again.
	leakWorkers = 8
	leakTimeout = 5 * time.Second
	maxLeaks    = 4096
)

// leakLog writes an audit event for live keys that were seen in a URL.
type leakLog struct {
	rt *runtime

	mu      sync.Mutex // guards seen and running
	seen    map[leakOf]time.Time
	running int
}

// leakOf is a leak that is written down once a minute: of a credential, on a
// site that revokes it or does not.
type leakOf struct {
	credential string
	revoke     bool
}

// burn writes down, and if it is so configured revokes, live keys in the URL of
// a request.
func (h *Handler) burn(r *http.Request, texts []string) {
	if h.explain != nil {
		return
	}
	leaked := h.Leaked
	if leaked == "" {
		leaked = h.app.Leaked
	}
	if len(texts) > 0 {
		h.app.rt.leaks.burn(texts, leakedAt{h.loggable(r.Host), loggedPath(r), clientIP(r)}, leaked == "revoke")
	}
}

// leakedAt is where a credential was seen: all of it may be logged and kept.
type leakedAt struct{ site, path, address string }

// burn looks the texts up, away from the request that showed them. Forged
// ones cost no I/O.
func (l *leakLog) burn(texts []string, at leakedAt, revoke bool) {
	for _, text := range texts {
		l.mu.Lock()
		full := l.running >= leakWorkers
		if !full {
			l.running++
		}
		l.mu.Unlock()
		if full {
			return
		}
		go func() {
			defer func() {
				l.mu.Lock()
				l.running--
				l.mu.Unlock()
			}()
			l.one(text, at, revoke)
		}()
	}
}

func (l *leakLog) one(text string, at leakedAt, revoke bool) {
	ctx, cancel := context.WithTimeout(context.Background(), leakTimeout)
	defer cancel()
	what, v := "key", auth.Verdict{}
	switch secret.KindOf(text) {
	case secret.ClientSecret:
		what, v = "client_secret", l.rt.verifier.VerifySecret(ctx, text, time.Now())
	case secret.AccessToken:
		what = "token"
		fallthrough
	default:
		v = l.rt.verifier.VerifyKey(ctx, text, time.Now())
	}
	which := v.Identity.CredentialID
	if what == "client_secret" { // a client may have several
		which += " " + v.Identity.Hint
	}
	if v.Outcome != auth.Allow || !l.first(leakOf{which, revoke}) {
		return
	}
	metrics.leaks.Inc()
	id := &v.Identity
	l.rt.logger().Named("audit").Warn("a live credential was sent in a URL: replace it",
		zap.String("action", what+".leaked"), zap.String("credential_id", id.CredentialID), zap.String("hint", id.Hint),
		zap.String("subject", id.Subject), zap.String("site", at.site), zap.String("path", at.path), zap.String("client_ip", at.address))
	db := l.rt.db.Load()
	if db == nil {
		return
	}
	if err := db.Note(ctx, "gateway", what+".leaked", id.CredentialID, map[string]any{"hint": id.Hint, "site": at.site, "path": at.path, "address": at.address}); err != nil {
		l.rt.logger().Warn("writing a leak to the audit log", zap.String("credential_id", id.CredentialID), zap.Error(err))
	}
	if revoke {
		l.revoke(ctx, db, id, what, which, auth.FingerprintOf(text))
	}
}

func (l *leakLog) revoke(ctx context.Context, db *store.DB, id *auth.Identity, what, which string, fp auth.Fingerprint) {
	name := zap.String("credential_id", id.CredentialID)
	m := manage.New(db, "gateway", "", nil)
	m.SetBell(l.rt)
	var err error
	switch what {
	case "client_secret":
		err = m.EndClientSecret(ctx, id.ClientID, fp, "sent in a URL")
	case "token":
		_, err = m.RevokeOwnToken(ctx, fp, id.CredentialID, id.ClientID, "sent in a URL")
	default:
		_, err = m.Revoke(ctx, []string{id.CredentialID}, "sent in a URL")
	}
	if err != nil {
		l.forget(leakOf{which, true}) // the next time it is seen it is tried again
		l.rt.logger().Error("a leaked credential could not be revoked", name, zap.Error(hinted(err)))
		return
	}
	l.rt.logger().Named("audit").Warn("a leaked credential was revoked", zap.String("action", what+".revoke"), name)
}

// forget makes the next leak of a credential the first.
func (l *leakLog) forget(id leakOf) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.seen, id)
}

// first reports whether this credential's leak was not written down lately.
func (l *leakLog) first(id leakOf) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	if at, ok := l.seen[id]; ok && now.Sub(at) < leakEvery {
		return false
	}
	if l.seen == nil || len(l.seen) >= maxLeaks {
		l.seen = map[leakOf]time.Time{}
	}
	l.seen[id] = now
	return true
}
