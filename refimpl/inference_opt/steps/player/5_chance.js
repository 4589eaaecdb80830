const drawSpeculation = drawAttention, drawLaw = drawAttention;
