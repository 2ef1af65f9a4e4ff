package verifier

import (
	"crypto/sha256"
	"strings"
	"sync"
	"time"

	"github.com/caddy-auth/caddy-auth/internal/auth"
)

// CutOffs are the tokens of other issuers that were ended before they expire.
// It is safe for concurrent use.
type CutOffs struct {
	mu    sync.RWMutex
	until map[cutOffKey]int64 // tokens issued before that, unix milliseconds, are cut off
}

// cutOffKey is a part of a hash of what a cut-off names.
type cutOffKey [16]byte

func keyOf(kind auth.ParentKind, issuer, name string) cutOffKey {
	sum := sha256.Sum256([]byte(string(kind) + "\x00" + issuer + "\x00" + name))
	return cutOffKey(sum[:16])
}

// NewCutOffs returns cut-offs that all of a store's are added to.
func NewCutOffs() *CutOffs { return &CutOffs{until: map[cutOffKey]int64{}} }

// Add adds one. None is ever taken away or made to concern less.
func (c *CutOffs) Add(one auth.CutOff) {
	kind, name := auth.ParentSubject, one.Subject
	if one.JTI != "" {
		kind, name = auth.ParentToken, one.JTI
	}
	k := keyOf(kind, one.Issuer, name)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.until[k] = max(c.until[k], one.IssuedBefore)
}

// Cut reports whether a token of an issuer is cut off: by its jti, if it has
// one, or by its subject and when it was issued (unix seconds; 0, not known:
// then before everything).
func (c *CutOffs) Cut(issuer, subject, jti string, issuedAt uint32) bool {
	c.mu.RLock()
	defer c.mu.RUnlock()
	if len(c.until) == 0 {
		return false
	}
	at := int64(issuedAt) * 1000
	return jti != "" && at < c.until[keyOf(auth.ParentToken, issuer, jti)] || at < c.until[keyOf(auth.ParentSubject, issuer, subject)]
}

// SetCutOffs gives the verifier what was cut off; nil: that is not known, and
// no token can be judged.
func (v *Verifier) SetCutOffs(c *CutOffs) { v.cutOffs.Store(c) }

// CutOffs returns what SetCutOffs set, or nil.
func (v *Verifier) CutOffs() *CutOffs { return v.cutOffs.Load() }

// tokenAgain judges a token that was verified before.
func (v *Verifier) tokenAgain(id *auth.Identity, now time.Time) auth.Verdict {
	cut := v.cutOffs.Load()
	if cut == nil {
		return auth.Undecided(errCutOffs)
	}
	verdict := auth.Verdict{Outcome: auth.Allow, Identity: *id}
	// subject_format raw has no issuer in front, or one that is the subject's own.
	short := strings.TrimPrefix(id.Subject, auth.PartOf(id.Issuer, ""))
	if cut.Cut(id.Issuer, id.Subject, id.CredentialID, id.IssuedAt) || cut.Cut(id.Issuer, short, id.CredentialID, id.IssuedAt) {
		verdict.Outcome, verdict.Reason = auth.Deny, auth.ReasonRevoked
		return verdict
	}
	judgeExpiry(&verdict, now)
	return verdict
}
