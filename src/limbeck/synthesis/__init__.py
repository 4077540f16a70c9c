"""Images from a teacher alone: priors, inversion, generators, pools of other images, detection scenes."""
