package jwks

import (
	"errors"
	"fmt"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/jwt"
	"github.com/caddy-auth/caddy-auth/internal/strictjson"
)

// MaxKeys is how many keys a set may have.
const MaxKeys = 100

// parse reads a key set (RFC 7517, 5). Keys that are not for tokens are passed
// over, and so is one that is wrong in itself or has the kid of an earlier one
// of its kind: the others are still good. skipped says why. A set without a key
// that can be used is an error: an issuer without keys issues nothing.
func parse(body []byte) (keys []*jwt.Key, skipped []string, err error) {
	o, err := strictjson.Decode(body)
	if err != nil {
		return nil, nil, fmt.Errorf("reading a key set: %w: %w", err, auth.ErrUnavailable)
	}
	list, ok := o["keys"].([]any)
	switch {
	case !ok:
		return nil, nil, fmt.Errorf("a key set without keys: %w", auth.ErrUnavailable)
	case len(list) > MaxKeys:
		return nil, nil, fmt.Errorf("a key set of %d keys, at most %d: %w", len(list), MaxKeys, auth.ErrUnavailable)
	}
	for i, v := range list {
		one, _ := v.(strictjson.Object)
		k, err := jwt.ParseKey(one)
		if err == nil && clashes(keys, k) {
			err = errors.New("another key has its kid")
		}
		if err != nil {
			skipped = append(skipped, fmt.Sprintf("key %d: %v", i, err))
			continue
		}
		keys = append(keys, k)
	}
	if len(keys) == 0 {
		return nil, skipped, fmt.Errorf("a key set without a key that can be used %q: %w", skipped, auth.ErrUnavailable)
	}
	return keys, skipped, nil
}

// clashes reports whether a key of the same kid could be meant instead.
func clashes(keys []*jwt.Key, k *jwt.Key) bool {
	for _, other := range keys {
		if k.ID != "" && other.ID == k.ID && other.Alike(k) {
			return true
		}
	}
	return false
}

// find returns the key that a token with a kid and an algorithm is to be
// checked with. Without a kid it must be the only one that fits.
func find(keys []*jwt.Key, kid, alg string) (k *jwt.Key, ambiguous bool) {
	alg = jwt.Canonical(alg)
	for _, one := range keys {
		switch {
		case kid != "" && one.ID != kid, kid == "" && !one.Fits(alg):
		case kid != "" && (k == nil || one.Fits(alg)):
			k = one
		case kid == "" && k != nil:
			return nil, true
		case kid == "":
			k = one
		}
	}
	return k, false
}
