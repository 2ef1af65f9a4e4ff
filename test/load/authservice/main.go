// Command authservice is what people write behind forward_auth and
// auth_request: it looks the SHA-256 of the key up in Redis and answers with the
// identity as headers.
package main

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"log"
	"net/http"
	"os"

	"github.com/redis/go-redis/v9"
)

type identity struct {
	Subject      string `json:"subject"`
	Method       string `json:"method"`
	CredentialID string `json:"credential_id"`
	Scopes       string `json:"scopes"`
	Environment  string `json:"environment"`
}

func main() {
	if len(os.Args) != 3 {
		log.Fatal("usage: authservice LISTEN REDIS")
	}
	rdb := redis.NewClient(&redis.Options{Addr: os.Args[2]})
	log.Fatal(http.ListenAndServe(os.Args[1], http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		sum := sha256.Sum256([]byte(r.Header.Get("X-Api-Key")))
		text, err := rdb.Get(r.Context(), hex.EncodeToString(sum[:])).Bytes()
		var id identity
		switch {
		case errors.Is(err, redis.Nil):
			w.WriteHeader(http.StatusUnauthorized)
			return
		case err != nil || json.Unmarshal(text, &id) != nil:
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		h := w.Header()
		h.Set("X-Auth-Subject", id.Subject)
		h.Set("X-Auth-Method", id.Method)
		h.Set("X-Auth-Credential-Id", id.CredentialID)
		h.Set("X-Auth-Scopes", id.Scopes)
		h.Set("X-Auth-Environment", id.Environment)
	})))
}
