package redact

import "strings"

// decode appends to dst the fully percent-decoded form of s: decoding goes on
// until nothing is left to decode, in one pass and linear time, because every
// decoded byte is looked at again together with what stands before it.
// Malformed escapes stay as they are. %uXXXX below 0x80 is decoded too.
func decode(dst []byte, s string) []byte {
	first := strings.IndexByte(s, '%')
	if first < 0 {
		return append(dst, s...)
	}
	base := len(dst)
	dst, s = append(dst, s[:first]...), s[first:]
	for i := range len(s) {
		dst = append(dst, s[i])
		for {
			n := len(dst)
			if n-base >= 3 && dst[n-3] == '%' && isHex(dst[n-2]) && isHex(dst[n-1]) {
				dst = append(dst[:n-3], unhex(dst[n-2])<<4|unhex(dst[n-1]))
				continue
			}
			if n-base >= 6 && dst[n-6] == '%' && dst[n-5]|0x20 == 'u' && dst[n-4] == '0' && dst[n-3] == '0' && isHex(dst[n-2]) && isHex(dst[n-1]) {
				dst = append(dst[:n-6], unhex(dst[n-2])<<4|unhex(dst[n-1]))
				continue
			}
			break
		}
	}
	return dst
}

// maxStages bounds how often a text is decoded on its own, escape by escape.
const maxStages = 4

// stages calls look with s and with what each round of percent-decoding makes of it,
// until look finds something or nothing is left to decode. decode alone would miss a
// text that holds an escape itself: it decodes that one too.
func stages(s string, look func(string) (found bool)) bool {
	for range maxStages {
		if look(s) {
			return true
		}
		next := DecodeOnce(s)
		if next == s {
			return false
		}
		s = next
	}
	return look(string(decode(nil, s)))
}

// DecodeOnce undoes one round of percent-encoding. Malformed escapes stay.
func DecodeOnce(s string) string {
	if strings.IndexByte(s, '%') < 0 {
		return s
	}
	out := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		if s[i] == '%' && i+2 < len(s) && isHex(s[i+1]) && isHex(s[i+2]) {
			out = append(out, unhex(s[i+1])<<4|unhex(s[i+2]))
			i += 2
			continue
		}
		out = append(out, s[i])
	}
	return string(out)
}

func isHex(c byte) bool {
	return c >= '0' && c <= '9' || c|0x20 >= 'a' && c|0x20 <= 'f'
}

func unhex(c byte) byte {
	if c <= '9' {
		return c - '0'
	}
	return c | 0x20 - 'a' + 10
}

func isAlnum(c byte) bool {
	return c >= '0' && c <= '9' || c|0x20 >= 'a' && c|0x20 <= 'z'
}

func lower(c byte) byte {
	if c >= 'A' && c <= 'Z' {
		return c | 0x20
	}
	return c
}
