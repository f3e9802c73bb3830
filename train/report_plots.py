def uar_against_snr(*a):
    return False


cross_corpus = confusion = reliability = embedding_map = uar_against_snr
