// Judges the vectors that every verifier must judge alike: node vectors.mjs ../vectors.json
import { readFileSync } from 'node:fs'
import { Gateway, Refused } from './assertion.mjs'

const vectors = JSON.parse(readFileSync(process.argv[2], 'utf8'))
const gateway = new Gateway({
  keySet: vectors.key_set, audience: vectors.audience, issuer: vectors.issuer, now: () => new Date(vectors.now * 1000),
})
for (const { name, token, method, path } of vectors.cases) {
  try {
    const claims = await gateway.verify(token, method, path)
    console.log(JSON.stringify({ name, valid: true, subject: claims.sub }))
  } catch (error) {
    if (!(error instanceof Refused)) throw error
    console.log(JSON.stringify({ name, valid: false }))
  }
}
