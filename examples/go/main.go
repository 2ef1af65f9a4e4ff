// Program go is a service behind the gateway: it says who called it, and lets
// nobody in whom the gateway does not vouch for. Run it with:
//
//	KEYS_URL=https://api.example.com/.well-known/jwks.json AUDIENCE=orders PORT=9000 go run .
package main

import (
	"encoding/json"
	"log"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/caddy-auth/caddy-auth/upstream"
)

func main() {
	gateway, err := upstream.New(upstream.Config{KeysURL: os.Getenv("KEYS_URL"), Audience: os.Getenv("AUDIENCE"), Issuer: os.Getenv("ISSUER")})
	if err != nil {
		log.Fatal(err)
	}
	defer gateway.Close()
	server := &http.Server{
		Addr:              net.JoinHostPort("127.0.0.1", os.Getenv("PORT")),
		Handler:           gateway.Middleware(http.HandlerFunc(hello)),
		ReadHeaderTimeout: 5 * time.Second,
	}
	log.Print(server.ListenAndServe())
}

func hello(w http.ResponseWriter, r *http.Request) {
	caller, _ := upstream.FromContext(r.Context())
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(map[string]any{"hello": caller.Subject, "scopes": caller.Scopes})
}
