package problem

import (
	"fmt"
	"mime"
	"net/http"
	"strconv"
	"strings"
)

// Codes of gRPC (its statuscodes document).
const (
	grpcUnknown          = 2
	grpcInvalidArgument  = 3
	grpcPermissionDenied = 7
	grpcExhausted        = 8
	grpcUnimplemented    = 12
	grpcUnavailable      = 14
	grpcUnauthenticated  = 16
)

// grpcType returns the media type of a gRPC request, to answer with, and
// whether it is one: application/grpc or application/grpc-web, with or without
// a +subtype, over HTTP/2 or 3. Over HTTP/1 a header would let any client turn
// its refusals into 200.
func grpcType(r *http.Request) (string, bool) {
	if r.ProtoMajor < 2 || r.Method != http.MethodPost || len(r.Header["Content-Type"]) != 1 {
		return "", false
	}
	kind, _, err := mime.ParseMediaType(r.Header["Content-Type"][0])
	if err != nil {
		return "", false
	}
	base, _, _ := strings.Cut(kind, "+")
	return kind, base == "application/grpc" || base == "application/grpc-web" || base == "application/grpc-web-text"
}

// IsGRPC reports whether a request expects a gRPC answer.
func IsGRPC(r *http.Request) bool {
	_, ok := grpcType(r)
	return ok
}

// writeGRPC answers with headers alone: a trailers-only response, as gRPC over
// HTTP/2 wants it (PROTOCOL-HTTP2, Responses). Its HTTP status is 200.
func writeGRPC(w http.ResponseWriter, kind string, status int, message string) {
	h := w.Header()
	h.Set("Content-Type", kind)
	h.Set("Grpc-Status", strconv.Itoa(grpcCode(status)))
	h.Set("Grpc-Message", grpcMessage(message))
	if strings.HasPrefix(kind, "application/grpc-web") { // else browsers hide the status from the page
		h.Add("Access-Control-Expose-Headers", "grpc-status, grpc-message")
	}
	w.WriteHeader(http.StatusOK)
}

func grpcCode(status int) int {
	switch status {
	case http.StatusBadRequest:
		return grpcInvalidArgument
	case http.StatusUnauthorized:
		return grpcUnauthenticated
	case http.StatusForbidden:
		return grpcPermissionDenied
	case http.StatusNotFound:
		return grpcUnimplemented
	case http.StatusTooManyRequests:
		return grpcExhausted
	case http.StatusTooEarly, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return grpcUnavailable
	}
	return grpcUnknown
}

// grpcMessage percent-encodes what is not printable ASCII (PROTOCOL-HTTP2,
// Status-Message).
func grpcMessage(s string) string {
	var b strings.Builder
	for i := range len(s) {
		if c := s[i]; c < 0x20 || c > 0x7e || c == '%' {
			fmt.Fprintf(&b, "%%%02X", c)
		} else {
			b.WriteByte(c)
		}
	}
	return b.String()
}
