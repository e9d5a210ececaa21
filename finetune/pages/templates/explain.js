showTiles(JSON.parse(document.getElementById("explanation").textContent), document.getElementById("plain").textContent, document.title);
