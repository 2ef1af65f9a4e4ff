package caddymodule

import (
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2"
	"go.uber.org/zap"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/outbound"
)

// outbounds keeps sources over reloads: a reload fetches no token.
var outbounds = caddy.NewUsagePool()

// source is a credential in use.
type source struct {
	outbound.Source
	name   string
	tokens *outbound.Tokens // nil: a key
	ask    *outbound.Endpoint
	header string         // that carries it
	file   *outbound.File // nil: the secret does not change

	startOnce sync.Once
	stop      func()

	mu     sync.Mutex // guards what logs must not show
	hidden []auth.Secret
}

// hide keeps a secret out of every log: an upstream may say it again. The one
// before it may still be under way.
func (s *source) hide(secret auth.Secret) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if slices.ContainsFunc(s.hidden, secret.Equal) {
		return
	}
	if s.hidden = append(s.hidden, secret); len(s.hidden) > hiddenSecrets {
		s.hidden = s.hidden[1:]
	}
	masker.SetLiterals(s, s.hidden...)
}

// hiddenSecrets is how many secrets and tokens of one outbound logs don't show.
const hiddenSecrets = 6

// Destruct implements caddy.Destructor.
func (s *source) Destruct() error {
	// What is under way may still be logged.
	time.AfterFunc(time.Minute, func() { masker.SetLiterals(s) })
	if s.stop != nil {
		s.stop()
	}
	if s.tokens != nil {
		s.tokens.Close()
		s.ask.Close()
	}
	return nil
}

// start begins to watch the secret and lets tokens be fetched. Called again it
// does nothing.
func (s *source) start() {
	s.startOnce.Do(func() {
		changed := func() {}
		if s.tokens != nil {
			s.tokens.SetEvents(s.tokenEvents())
			s.tokens.SetShared(newMeeting(s))
			s.tokens.Start()
			changed = s.tokens.SecretChanged
		}
		if s.file != nil {
			s.file.SetEvents(s.fileEvents())
			s.stop = s.file.Watch(changed)
		}
	})
}

// tokenEvents log where the process logs now: a source may outlive the
// configuration that named it.
func (s *source) tokenEvents() outbound.Events {
	name := s.name
	log := func() *zap.Logger { return caddy.Log().Named("auth.outbound") }
	field := zap.String("outbound", name)
	var kept atomic.Int64
	return outbound.Events{
		Got: func(g outbound.Grant, from outbound.Origin) {
			s.hide(g.Token)
			metrics.outboundRefreshes.WithLabelValues(name, string(from)).Inc()
			log().Info("has a token", field, zap.String("from", string(from)), zap.Time("expires", g.Expires), zap.Strings("scopes", g.Scopes))
			if !g.Told {
				log().Debug("the token endpoint does not say how long its token lives", field, zap.Duration("assumed", outbound.UnknownLifetime))
			}
		},
		Failed: func(f *outbound.Failure, left time.Duration) {
			metrics.outboundFailures.WithLabelValues(name, string(f.Cause)).Inc()
			text := "no token; requests to its upstreams get 503 or 502 until there is one"
			if left > 0 {
				text = "no new token; the present one is used as long as it is good"
			}
			log().Error(text, field, zap.Error(hinted(f)), zap.Duration("left", left), zap.Duration("retry_after", f.RetryAfter))
		},
		Refused: func(renewed bool) {
			result := "kept"
			if renewed {
				result = "renewed"
			}
			metrics.outboundRefused.WithLabelValues(name, result).Inc()
			if !renewed && !lately(&kept) { // each request may cause one
				return
			}
			log().Warn("the upstream refuses the token", field, zap.String("result", result))
		},
	}
}

func (s *source) fileEvents() outbound.FileEvents {
	log := func() *zap.Logger { return caddy.Log().Named("auth.outbound") }
	fields := []zap.Field{zap.String("outbound", s.name), zap.String("file", s.file.Path())}
	return outbound.FileEvents{
		Changed: func() {
			s.hide(s.file.Current())
			log().Info("the secret has changed", fields...)
		},
		Broken: func(err error) {
			log().Error("the secret's file can't be used; the last secret that could is", append(fields, zap.Error(err))...)
		},
		Mended: func() { log().Info("the secret's file holds the present secret again", fields...) },
	}
}

// ownInUse are the sources of configurations that run, for metrics.
var ownInUse sourceCount

type sourceCount struct {
	mu  sync.Mutex
	all []*source // once for each configuration, the newest last
}

func (c *sourceCount) add(s *source) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.all = append(c.all, s)
}

func (c *sourceCount) remove(s *source) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if i := slices.Index(c.all, s); i >= 0 {
		c.all = slices.Delete(c.all, i, i+1)
	}
}

// byName returns one source of each name.
func (c *sourceCount) byName() map[string]*source {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := map[string]*source{}
	for _, s := range c.all {
		out[s.name] = s
	}
	return out
}
