const drawAttention = () => ({ width: 300, height: 20, body: "", label: "" });
const drawLatent = drawAttention;
