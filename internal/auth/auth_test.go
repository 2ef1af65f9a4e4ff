package auth_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/caddy-auth/caddy-auth/internal/auth"
)

func TestSecret_NeverPrints(t *testing.T) {
	s := auth.NewSecret("hunter2")
	inside := struct{ S auth.Secret }{s}
	js, err := json.Marshal(inside)
	if err != nil {
		t.Fatal(err)
	}
	var log strings.Builder
	slog.New(slog.NewTextHandler(&log, nil)).Info("x", "s", s)
	for _, out := range []string{
		fmt.Sprint(s), fmt.Sprintf("%v %+v %#v %s %q %x %d", s, s, s, s, s, s, s), fmt.Sprintf("%+v %#v", inside, inside), string(js), log.String(),
		fmt.Errorf("doing x: %v", s).Error(),
	} {
		if strings.Contains(out, "hunter2") || strings.Contains(out, "68756e746572") {
			t.Errorf("printed: %s", out)
		}
	}
	if s.Reveal() != "hunter2" || !s.Equal(auth.NewSecret("hunter2")) || s.Equal(auth.NewSecret("hunter3")) {
		t.Error("the text is lost")
	}
}

func TestZeroVerdictLetsNobodyIn(t *testing.T) {
	var v auth.Verdict
	if v.Outcome != auth.CannotDecide {
		t.Errorf("outcome %d", v.Outcome)
	}
}

func TestKeyState(t *testing.T) {
	now := time.UnixMilli(1000)
	for want, k := range map[auth.KeyState]auth.Key{
		auth.KeyActive:        {ExpiresAt: 1001},
		auth.KeyExpired:       {ExpiresAt: 1000, DisabledAt: 1},
		auth.KeyRevoked:       {RevokedAt: 1, ExpiresAt: 1},
		auth.KeyDisabled:      {DisabledAt: 1, OwnerDisabled: true},
		auth.KeyOwnerDisabled: {OwnerDisabled: true},
		auth.KeyReplaced:      {ReplacedBy: "x", ExpiresAt: 2000},
	} {
		if got := k.State(now); got != want {
			t.Errorf("%+v: %s, want %s", k, got, want)
		}
	}
}

func TestHintAndInvalid(t *testing.T) {
	err := fmt.Errorf("doing x: %w", auth.WithHint(auth.Invalidf("y is %d", 3), "use 4"))
	if auth.Hint(err) != "use 4" || !errors.Is(err, auth.ErrInvalid) || err.Error() != "doing x: y is 3" {
		t.Errorf("%v, hint %q", err, auth.Hint(err))
	}
}
