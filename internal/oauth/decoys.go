package oauth

// decoySet has a key for every algorithm that clients may sign with.
const decoySet = `{"keys":[
{"kty":"RSA","n":"xIMsFIgZy_qM9-XCaEiMwUm3GoJiTp_rWuA3E_JK3LqaxBYeEjE6t6DUavrdrHhUM646rIc4wpe81LyOMCepJvX7QN3-7UDe28gAVaBWePZXvs8XDH3L5FGmeaC55Ci51wr4QpjFzMPCxULEdwnO3HzDHUTat-nZG8iMIrdsBchwUXle2qkeJfgi_stBX49n8nakHeclaSq7844ChaR-towITX2kXDZkJXj8tk4PZVNo8BQCM-kNU1GzXeObTeXOzh5dg1geo3hHXc4iOxtSFbyTyZeQj2H3tjvPLr2uBvl53yOzr5fDT7Uhydo67gaVPJmjTlAfhUU84WyGmyYt8Q","e":"AQAB"},
{"kty":"EC","crv":"P-256","x":"VJbjofzDJS3I_5upDEJp45Cf3ucLZ739tP1t8z-Olos","y":"FNkyDOHfXnmywVseZPns6tg5lI1AC-cVSRuE0lPbFDk"},
{"kty":"EC","crv":"P-384","x":"llkeO2mCpjy1brkVhjmKhvVPVbE6nEEYpixr-8M3E53XWeeOZXF0PZpx7G0d-Xrm","y":"YjUzjFWTV2mTK9eJfGpBTawn4Ars6V6mA6Gds5u0Xy89F_PEsbTVsQcud8YozYop"},
{"kty":"OKP","crv":"Ed25519","x":"CR_J1mKWyq5O0aKSPBFK7hMcOncJldqTXTLY3lN9g6M"}
]}`
