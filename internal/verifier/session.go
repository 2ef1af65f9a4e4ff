package verifier

import (
	"context"
	"time"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/cache"
)

// kindSession is the kind of shared records about sessions.
// Records of older releases, of another kind, don't say what judged a session.
const kindSession = "session of a judgement"

func (v *Verifier) aboutSession(fp auth.Fingerprint) question {
	return question{fp: fp, about: cache.About{Kind: kindSession}, ask: func(ctx context.Context) (answer, error) {
		l, err := v.keys.LookupSession(ctx, fp)
		return answer{verdictOfSession(l.Session, v.hooks.Now()), l.Point, l.Moved}, err
	}}
}

// VerifySession verifies what a session's cookie holds, for a login whose
// configuration has the digest judgedBy: under another one than judged who signed
// in a session has ended. One that this store did not make is refused without I/O.
func (v *Verifier) VerifySession(ctx context.Context, fp auth.Fingerprint, text, judgedBy string, now time.Time) auth.Verdict {
	verdict := v.verifySession(ctx, fp, text, now)
	if verdict.Outcome == auth.Allow && verdict.Identity.MetaValue(auth.MetaJudgedBy) != judgedBy {
		verdict.Outcome, verdict.Reason = auth.Deny, auth.ReasonReconfigured
	}
	return verdict
}

func (v *Verifier) verifySession(ctx context.Context, fp auth.Fingerprint, text string, now time.Time) (verdict auth.Verdict) {
	trusted := v.fence.Trusted(now)
	if trusted && v.memory.Lookup(&verdict, fp, now) {
		v.meter.Lookup(TierMemory, hitOf(&verdict))
		return v.unlessUsed(ctx, fp, verdict, now)
	}
	minter := v.minter.Load()
	switch {
	case minter == nil:
		return auth.Undecided(auth.ErrUnavailable)
	case !minter.CheckTagged(text):
		return auth.Denied(auth.ReasonForged)
	case !trusted: // before it may join a flight
		return auth.Undecided(auth.ErrStale)
	}
	return v.unlessUsed(ctx, fp, v.load(ctx, v.aboutSession(fp), now), now)
}

// unlessUsed judges whether a session has expired. One that seems to have may
// have been used at another gateway meanwhile, which only the store knows.
func (v *Verifier) unlessUsed(ctx context.Context, fp auth.Fingerprint, verdict auth.Verdict, now time.Time) auth.Verdict {
	if !seemsExpired(&verdict, now) {
		return verdict
	}
	return v.SessionAnew(ctx, fp, now)
}

// seemsExpired: what the store itself says has expired has no NotAfter.
func seemsExpired(verdict *auth.Verdict, now time.Time) bool {
	return verdict.Outcome != auth.CannotDecide && verdict.Reason != auth.ReasonRevoked && verdict.Identity.Expired(now)
}

// SessionAnew asks the store about a session, whatever is known of it.
func (v *Verifier) SessionAnew(ctx context.Context, fp auth.Fingerprint, now time.Time) auth.Verdict {
	q := v.aboutSession(fp)
	q.anew = true
	for range maxRuns {
		v.memory.Drop(fp)
		// It may have joined a flight of somebody who believes what others know.
		if verdict := v.load(ctx, q, now); !seemsExpired(&verdict, now) {
			return verdict
		}
	}
	return auth.Undecided(auth.ErrFenced)
}

// verdictOfSession turns a row of the store into what is cached. Expiry is
// judged on every request; one that has expired in the store never comes back.
func verdictOfSession(s *auth.Session, now time.Time) auth.Verdict {
	if s == nil {
		return auth.Denied(auth.ReasonUnknown)
	}
	v := auth.Verdict{Outcome: auth.Allow, Identity: auth.Identity{
		Subject: s.Subject, Method: auth.MethodSession, CredentialID: s.ID, Scopes: s.Scopes, Environment: s.Environment, Issuer: s.Login,
		Meta: auth.EncodeMeta([]string{auth.MetaJudgedBy}, map[string]string{auth.MetaJudgedBy: s.JudgedBy}) + s.Meta, IssuedAt: uint32(s.CreatedAt / 1000), NotAfter: s.NotAfter(),
	}}
	switch {
	case s.RevokedAt != 0:
		v.Outcome, v.Reason = auth.Deny, auth.ReasonRevoked
	case s.NotAfter() <= now.UnixMilli():
		v.Outcome, v.Reason, v.Identity.NotAfter = auth.Deny, auth.ReasonExpired, 0
	}
	return v
}
